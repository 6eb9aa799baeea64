-- track_minute: takes one minute that a client reports, once.
--
-- A reported session is like any other, but no process meters it. Between two minutes it is
-- paused, without sockets, and a grace runs, which ends it when no more minutes come. The step
-- was computed from the version that it names. This script decides only what only Redis can
-- know: whether the minute is new, and whether the month has room for it. A step that restores
-- has no new minute: it puts back minutes that Redis has lost, and needs no room.
--
-- KEYS   1 session   hash (see commit.lua), and tracked: '1' while its client reports
--        2 tracked   hash: the numbers of the minutes taken, by the instant of their
--                    beginning
--        3 sockets   set: the processes that have sockets of the session
--        4 account   hash (see commit.lua)
--        5 member    hash (see commit.lua)
--        6 org       hash (see commit.lua)
--        7 outbox    stream (see commit.lua)
--        8 live      set: the partition's live sessions
--        9 graces    sorted set: sessions whose grace runs, by its end
--       10 recovering  string: exists while processes put back what Redis has lost
--       11 epoch       string   12 prepared   string (see commit.lua)
--       13, 14 contained   hashes, for member and org (see assert.lua)
-- ARGV   1 the step, JSON; see storage/redis/reported_minutes.py
--
-- Answers {status, detail}, with the status
--   ok         the minute is taken; detail is its outbox entry
--   duplicate  the minute was taken before; detail is its number
--   metered    a process meters the session, and this minute with it
--   ended      the session has ended; detail is '1' if its client reported its minutes
--   stale      another step was faster, or the basis of a first minute has changed: read the
--              session again
--   refused    no minute is left; detail is the limit
--   held       no minute is left, but only because metered sessions hold minutes; with recall
--              they are asked to give back what they do not need; detail is the limit
--   full       the outbox is full, so no minute is taken
--   cold       account, member or org must be loaded first; detail names them. While the
--              partition recovers this is always the answer, and nothing can be loaded

local step = cjson.decode(ARGV[1])
local call = redis.call
local number = function(key, field) return tonumber(call('HGET', key, field) or '0') or 0 end

local found = call('HMGET', KEYS[1], 'version', 'standing', 'tracked')
if tonumber(found[1] or '0') ~= step.version then return {'stale', ''} end
if step.basis then
  local known = call('GET', KEYS[12])
  local other = known and string.match(known, ':(.*)$') ~= step.basis.preparation
  if other or (call('GET', KEYS[11]) or '') ~= step.basis.epoch then return {'stale', ''} end
end
local taken = call('HGET', KEYS[2], step.minute_at)
if taken then return {'duplicate', taken} end
if found[1] then
  local phase = cjson.decode(found[2]).phase
  local alone = found[3] == '1' and phase == 'paused' and call('SCARD', KEYS[3]) == 0
  if phase == 'ended' then return {'ended', found[3] or ''} end
  if not alone then return {'metered', ''} end
end
if call('XLEN', KEYS[7]) >= step.outbox_max then return {'full', ''} end
if step.beyond_cap then return {'refused', 'session_cap'} end

local cold = {}
for index, name in ipairs({'account', 'member', 'org'}) do
  if call('EXISTS', KEYS[3 + index]) == 0 then cold[#cold + 1] = name end
end
-- Who puts back what Redis has lost does not wait for that.
if not step.restores then
  if call('EXISTS', KEYS[10]) == 1 then cold = {'account'} end
end
if #cold > 0 then return {'cold', table.concat(cold, ',')} end

-- Recorded minutes that Redis has lost and the counters lack. If Redis has lost the whole
-- session, counters may have been loaded with some of its minutes (`contained`).
local due = {{}, {}}
for index = 1, 2 do
  local contained = step.identity and number(KEYS[12 + index], step.session_id) or 0
  for minute = contained + 1, #step.earlier do
    local month = step.earlier[minute]
    due[index][month] = (due[index][month] or 0) + 1
  end
end

local used, held = 'used:' .. step.month, 'held:' .. step.month
local lacked = {}
for index, name in ipairs(step.restores and {} or {'member_minutes', 'org_minutes'}) do
  local key = KEYS[4 + index]
  local limit = tonumber(call('HGET', key, 'limit') or '')
  if limit then limit = limit - (due[index][step.month] or 0) end
  if limit and call('HGET', key, 'overage') ~= '1'
    and limit - number(key, used) - number(key, held) < 1 then
    if limit - number(key, used) < 1 then return {'refused', name} end
    lacked[#lacked + 1] = name
  end
end
if #lacked > 0 then
  for _, name in ipairs(step.recall and lacked or {}) do
    local message = {recall = name}
    if name == 'member_minutes' then message.user_id = step.user_id end
    call(step.publish, step.limits_channel, cjson.encode(message))
  end
  return {'held', lacked[1]}
end

-- Settle: a minute on both months; the first minute also adds a live session.
if not step.restores then
  call('HINCRBY', KEYS[5], used, 1)
  call('HINCRBY', KEYS[6], used, 1)
end
for index = 1, 2 do
  for month, minutes in pairs(due[index]) do
    call('HINCRBY', KEYS[4 + index], 'used:' .. month, minutes)
  end
end
if step.identity then
  for index = 4, 6 do
    call('HINCRBY', KEYS[index], 'live', 1)
    call('PERSIST', KEYS[index])
  end
  call('HSET', KEYS[1], 'identity', step.identity, 'tracked', '1')
  if step.basis and step.basis.preparation ~= '' then
    call('HSET', KEYS[1], 'prepared', step.basis.preparation)
  end
  call('SADD', KEYS[8], step.session)
end

-- Move.
call('HSET', KEYS[1], 'version', string.format('%.0f', step.version + 1),
  'standing', step.standing, 'grant', step.grant, 'final', '')
for minute_at, minute in pairs(step.minutes) do
  call('HSET', KEYS[2], minute_at, string.format('%.0f', minute))
end
call('PEXPIRE', KEYS[2], step.kept_ms)
call('ZADD', KEYS[9], string.format('%.0f', step.grace_until), step.session)

-- To processes with sockets of the member: the figures of `usage`, as in usage.lua.
local time = call('TIME')
local message = {month = step.month, as_of = time[1] .. string.format('%06d', tonumber(time[2]))}
for index, name in ipairs({'member', 'org'}) do
  local figures = call('HMGET', KEYS[4 + index], 'limit', used)
  message[name] = {figures[1] or '', figures[2] or '0'}
end
call(step.publish, step.usage_channel, cjson.encode(message))

-- Append.
if step.restores then return {'ok', ''} end
return {'ok',
  call('XADD', KEYS[7], '*', 'r', step.records, 't', string.format('%.0f', step.at))}
