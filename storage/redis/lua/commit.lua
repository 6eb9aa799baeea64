-- commit: makes one step of a session, or answers why not.
--
-- It reserves, settles and appends in one, if the session still has the version that the step
-- names. protocol/metering/transitions.py computed the step from that version, so every figure
-- in it is final. This script decides only what only Redis can know: whether another step was
-- faster, and which of the offered grants every counter has room for.
--
-- KEYS   1 session   hash: version, identity, standing, grant, final, mark (the step's name);
--                    watched, once an observer was on another process; prepared, the
--                    fingerprint of the preparation that the session started from;
--                    joining:<process>, see attach.lua
--        2 notices   list: the newest notices, encoded, newest first
--        3 sockets   set: the processes that have sockets of the session
--        4 account   hash: balance, held, reserved, charged_live, burn, live, version,
--                    s:<session id> (the session's line, see protocol/metering/projection.py)
--        5 member    hash: limit, overage, active, live, used:<month>, held:<month>
--        6 org       hash: the same, of the whole organisation
--        7 free      hash: used, live (a shared allowance of free time)
--        8 outbox    stream: fields r, a JSON array of records for Postgres; t, the instant
--                    at which they were decided; and m, the step's instant in cluster time
--        9 live      set: the partition's live sessions
--       10 node      set: the sessions that the calling process has sockets of
--       11 graces    sorted set: sessions whose grace runs, by its end
--       12 recovering  string: exists while processes put back what Redis has lost
--       13 epoch       string: changes with every loss that a process finds
--       14 prepared    string: the session's preparation (see prepare.lua)
--       15 running   set: the user's live sessions of the kind, where the kind bounds them
-- ARGV   1 the step, JSON; see storage/redis/encoding.py, encode_step
--
-- A step that is rehearsed is not made: the answer is the one that it would get, without its
-- outbox entry. Where it would wait for what others hold, it is answered as made, not final.
--
-- Answers {status, detail, session fields, counters, bumped, notices}, with the status
--   ok        the step is made; session fields are the new ones, detail is its outbox entry
--   stale     another step was faster; session fields are what that step left
--   refused   no offer fits; detail is the limit that lacks room
--   held      no offer fits, but only because other sessions hold the rest: they are asked to
--             give back what they do not need; detail is the limit
--   left      the process has left; others still have sockets. With farewell_at the others
--             learn when the user said good-bye: earlier proofs in advance end then. A process
--             that is joining learns it from the session (see farewell.lua)
--   gone      the session, or its newest step, is not here any more: Redis came back empty,
--             or as a replica that lacks the last writes (see assert.lua)
--   outdated  since the caller looked up the session's terms, a preparation has come, or
--             Redis has lost data: look them up again
--   crowded   the user has as many live sessions of the kind as the kind allows
--   full      the outbox is full, so no session may start
--   cold      account, member, org or free must be loaded first; detail names them. While the
--             partition recovers from a loss this is always the answer; nothing can be loaded

local step = cjson.decode(ARGV[1])
local call = redis.call
-- Lua's numbers are doubles. A negated zero would be written "-0", which is no integer.
local whole = function(number) return number == 0 and '0' or string.format('%.0f', number) end
local number = function(key, field) return tonumber(call('HGET', key, field) or '0') or 0 end

local function counters()
  local answer = {}
  for _, key in ipairs({KEYS[5], KEYS[6]}) do
    local counter = {'', '0', '0', '0'}
    if step.counts then
      local found = call('HMGET', key,
        'limit', 'used:' .. step.month, 'active', 'held:' .. step.month, 'overage')
      counter = {found[5] == '1' and '' or found[1] or '',
        found[2] or '0', found[3] or '0', found[4] or '0'}
    end
    answer[#answer + 1] = counter
  end
  local account = call('HMGET', KEYS[4], 'balance', 'charged_live', 'reserved', 'version')
  local gross = (tonumber(account[1]) or 0) + (tonumber(account[2]) or 0)
  answer[3] = {whole(gross), account[3] or '0', account[4] or '0'}
  answer[4] = step.free_limit > 0 and whole(step.free_limit - number(KEYS[7], 'used')) or ''
  -- The instant of these counters, because answers may overtake each other.
  local time = call('TIME')
  answer[5] = time[1] .. string.format('%06d', tonumber(time[2]))
  return answer
end

local function answer(status, detail, bumped)
  local found = call('HMGET', KEYS[1], 'identity', 'standing', 'grant', 'final', 'mark')
  local notices = {}
  if status == 'stale' then notices = call('LRANGE', KEYS[2], 0, -1) end
  return {status, detail or '', found, counters(), bumped and 1 or 0, notices}
end

-- Which processes are there, and was another step faster?
local newest = call('HMGET', KEYS[1], 'version', 'mark')
local version = newest[1]
if step.leaving then
  call('SREM', KEYS[3], step.node)
  call('SREM', KEYS[10], step.session)
  if version and step.farewell_at and step.farewell_at > number(KEYS[1], 'farewell') then
    call('HSET', KEYS[1], 'farewell', whole(step.farewell_at))
  end
  if version and call('SCARD', KEYS[3]) > 0 then
    if step.farewell_at then
      local message = {farewell = step.id, at = step.farewell_at}
      call(step.publish, step.channel, cjson.encode(message))
    end
    return answer('left')
  end
end
if tonumber(version or '0') < step.version then return {'gone', '', {}, {}, 0, {}} end
if tonumber(version or '0') ~= step.version then return answer('stale') end
-- Another step made this version: it was made on a copy that lacked the caller's last one.
if (newest[2] or '') ~= step.after then return answer('stale') end
if step.basis then  -- only a start has one
  local known = call('GET', KEYS[14])
  local other = known and string.match(known, ':(.*)$') ~= step.basis.preparation
  if other or (call('GET', KEYS[13]) or '') ~= step.basis.epoch then
    return {'outdated', '', {}, {}, 0, {}}
  end
end
if step.version == 0 and call('XLEN', KEYS[8]) >= step.outbox_max then
  return {'full', '', {}, {}, 0, {}}
end
-- Some scripts end sessions without this set: remove here those that are not live any more.
if step.version == 0 and step.live_max > 0 then
  for _, session in ipairs(call('SMEMBERS', KEYS[15])) do
    if call('SISMEMBER', KEYS[9], session) == 0 then call('SREM', KEYS[15], session) end
  end
  if call('SCARD', KEYS[15]) >= step.live_max then return {'crowded', '', {}, {}, 0, {}} end
end

-- Is every counter of the step loaded?
local cold = {}
if call('EXISTS', KEYS[4]) == 0 or call('EXISTS', KEYS[12]) == 1 then
  cold[#cold + 1] = 'account'
end
if step.counts and call('EXISTS', KEYS[5]) == 0 then cold[#cold + 1] = 'member' end
if step.counts and call('EXISTS', KEYS[6]) == 0 then cold[#cold + 1] = 'org' end
if step.free_limit > 0 and call('EXISTS', KEYS[7]) == 0 then cold[#cold + 1] = 'free' end
if #cold > 0 then return {'cold', table.concat(cold, ','), {}, {}, 0, {}} end
if step.free_taken > 0 and step.free_taken > step.free_limit - number(KEYS[7], 'used') then
  return answer('stale')
end

-- The room on every counter, not counting what the session itself holds.
local balance = number(KEYS[4], 'balance') - step.charge + (step.due or 0)
local room = balance - (number(KEYS[4], 'held') - step.held)
local burn = number(KEYS[4], 'burn') + step.burn_change
local months = {}
for index, name in ipairs({'member_minutes', 'org_minutes'}) do
  local key = KEYS[4 + index]
  if step.counts and call('HGET', key, 'overage') ~= '1' then
    local limit = tonumber(call('HGET', key, 'limit') or '')
    if limit then
      local active = number(key, 'active') + step.active_change
      for month, part in pairs(step.months) do
        local left = limit - number(key, 'used:' .. month) - part.used
        months[#months + 1] = {
          name = name, month = month, active = active, left = left, part = part,
          room = left - (number(key, 'held:' .. month) - part.held),
        }
      end
    end
  end
end

-- Minutes that the session has already: what it holds and does not use now; once a grant is
-- chosen, what that grant holds.
local own = {}
for month, part in pairs(step.months) do own[month] = part.held - part.used end

-- The limit that has no room to hold this much; nil when all have room. The session's own
-- minutes need no room: a lowered limit takes back no minute that was granted.
local function lacking(micros, minutes)
  if micros > 0 and micros > room then return 'credits' end
  for _, counter in ipairs(months) do
    local needed = minutes[counter.month] or 0
    if needed <= (own[counter.month] or 0) then needed = 0 end
    if needed > 0 and needed > counter.room then return counter.name end
  end
  return nil
end

-- Whether a counter has less left than its sessions burn in floor_ms: then grants are shorter.
local function low(floor_ms)
  if floor_ms == 0 then return false end
  if step.paid and balance * 60000 < burn * floor_ms then return true end
  for _, counter in ipairs(months) do
    if counter.month == step.month and counter.left * 60000 < counter.active * floor_ms then
      return true
    end
  end
  return false
end

-- Whether the session may have the whole rest: it draws alone on every counter that is low.
local function may_have_rest(floor_ms)
  if step.paid and balance * 60000 < burn * floor_ms and burn > step.burn then return false end
  for _, counter in ipairs(months) do
    if counter.month == step.month and counter.left * 60000 < counter.active * floor_ms
      and counter.active > 1 then
      return false
    end
  end
  return low(floor_ms)
end

-- The limit that has no room for an offer even if others held nothing; nil when all have.
local function used_up(offer)
  local free = math.max(room, balance - number(KEYS[4], 'reserved'))
  if offer.held > 0 and offer.held > free then return 'credits' end
  for _, counter in ipairs(months) do
    local needed = offer.minutes[counter.month] or 0
    if needed > (own[counter.month] or 0) and needed > counter.left then return counter.name end
  end
  return nil
end

-- Recalls what an offer lacks. Sessions of other accounts hold minutes, too: the tenant's
-- channel reaches them.
local function held_by_others(limit, offer)
  if not step.recalled then
    if offer.held > 0 and offer.held > room then
      call(step.publish, step.channel, cjson.encode({recall = true}))
    end
    for _, counter in ipairs(months) do
      local needed = offer.minutes[counter.month] or 0
      if needed > (own[counter.month] or 0) and needed > counter.room then
        local message = {recall = counter.name}
        if counter.name == 'member_minutes' then message.user_id = step.user_id end
        call(step.publish, step.limits_channel, cjson.encode(message))
      end
    end
  end
  return answer('held', limit)
end

local chosen, refused, lacked, missed, waits = nil, nil, nil, nil, false
for _, offer in ipairs(step.offers) do
  local fits = not low(offer.floor_ms)
  if offer.rest then fits = may_have_rest(offer.floor_ms) end
  if fits then
    refused = lacking(offer.held, offer.minutes)
    if not refused then chosen = offer break end
    lacked, missed = refused, offer
  end
end
chosen = chosen or step.keep
-- Only a part of the gap has room: take that part only after others were asked to give back.
if chosen and chosen.part and lacked == 'credits' and not step.insists
  and number(KEYS[4], 'held') - step.held > number(KEYS[4], 'reserved') then
  return held_by_others(lacked, missed)
end
if not chosen and #step.offers > 0 then
  local least = step.offers[#step.offers]
  local gone = used_up(least)
  if gone then return answer('refused', gone) end
  if not step.rehearsed then return held_by_others(refused, least) end
  chosen, waits = least, true
end
local none = {held = 0, minutes = {}, grant = step.released}
local holding = chosen or none
local final = ''
if chosen then
  own = chosen.minutes
  final = chosen.final or (not waits and lacking(chosen.more, chosen.more_minutes)) or ''
end

if step.rehearsed then
  local ahead = counters()
  for index = 1, step.counts and 2 or 0 do
    local held = number(KEYS[4 + index], 'held:' .. step.month)
    ahead[index][3] = whole(number(KEYS[4 + index], 'active') + step.active_change)
    ahead[index][4] = whole(held + (holding.minutes[step.month] or 0))
  end
  ahead[3][1] = whole(tonumber(ahead[3][1]) + step.due)
  ahead[3][3] = whole(number(KEYS[4], 'version') + 1)
  if step.free_limit > 0 then ahead[4] = whole(tonumber(ahead[4]) - step.free_taken) end
  local fields = {step.identity, step.standing, holding.grant, final, step.mark}
  return {'ok', '', fields, ahead, 1, {}}
end

-- Settle.
local held_change = holding.held - step.held
call('HINCRBY', KEYS[4], 'balance', whole(-step.charge))
call('HINCRBY', KEYS[4], 'held', whole(held_change))
call('HINCRBY', KEYS[4], 'charged_live', whole(step.charged_live_change))
call('HINCRBY', KEYS[4], 'burn', whole(step.burn_change))
local touched = {KEYS[4]}
if step.counts then
  for _, key in ipairs({KEYS[5], KEYS[6]}) do
    touched[#touched + 1] = key
    call('HINCRBY', key, 'active', whole(step.active_change))
    for month, part in pairs(step.months) do
      call('HINCRBY', key, 'used:' .. month, whole(part.used))
      call('HINCRBY', key, 'held:' .. month, whole((holding.minutes[month] or 0) - part.held))
    end
  end
end
if step.free_limit > 0 then
  touched[#touched + 1] = KEYS[7]
  call('HINCRBY', KEYS[7], 'used', whole(step.free_taken))
end
-- A counter that no live session draws on may leave Redis; see `Live.load` for why that is safe.
for _, key in ipairs(touched) do
  if call('HINCRBY', key, 'live', step.live_change) > 0 then
    call('PERSIST', key)
  else
    call('PEXPIRE', key, step.idle_ms)
  end
end

-- Move.
call('HSET', KEYS[1], 'version', step.version + 1, 'standing', step.standing,
  'grant', holding.grant, 'final', final, 'mark', step.mark)
if step.version == 0 then
  call('HSET', KEYS[1], 'identity', step.identity)
  if step.basis and step.basis.preparation ~= '' then
    call('HSET', KEYS[1], 'prepared', step.basis.preparation)
  end
  call('SADD', KEYS[9], step.session)
  if step.live_max > 0 then call('SADD', KEYS[15], step.session) end
end
if step.present then
  call('SADD', KEYS[3], step.node)
  call('SADD', KEYS[10], step.session)
  call('HDEL', KEYS[1], 'joining:' .. step.node)
end
if step.grace_until then
  call('ZADD', KEYS[11], whole(step.grace_until), step.session)
else
  call('ZREM', KEYS[11], step.session)
end
-- A process that loses the last socket may not be alone: a sweeper may act in its name although
-- it lives.
local alone = not step.leaving and not step.graced
  and not call('HGET', KEYS[1], 'watched')
  and call('SCARD', KEYS[3]) == call('SISMEMBER', KEYS[3], step.node)
if step.ended then
  call('DEL', KEYS[3])
  call('SREM', KEYS[9], step.session)
  call('SREM', KEYS[10], step.session)
  if step.live_max > 0 then call('SREM', KEYS[15], step.session) end
  -- The process shortens this time to live once Postgres has the end: it will not assert the
  -- session any more (storage/redis/recovery.py, over).
  call('PEXPIRE', KEYS[1], step.idle_ms)
end

-- Append.
local entry = step.records
  and call('XADD', KEYS[8], '*', 'r', step.records, 't', whole(step.at),
    'm', whole(step.made_at)) or ''
for _, notice in ipairs(step.notices) do call('LPUSH', KEYS[2], notice) end
if #step.notices > 0 then call('LTRIM', KEYS[2], 0, step.notices_kept - 1) end
if step.ended then call('PEXPIRE', KEYS[2], step.idle_ms) end

-- Publish: to projections that changed, to the other processes of the session, and to sessions
-- that hold what this one lacks. Most claims publish nothing.
local freed = step.charge + held_change < 0
for _, counter in ipairs(months) do
  local before = counter.room + counter.part.used - counter.part.held
  local after = counter.room - (holding.minutes[counter.month] or 0)
  if before <= 0 and after > 0 then
    -- Sessions of other accounts may have been refused because no minute was left.
    call(step.publish, step.limits_channel, cjson.encode({freed = true}))
    break
  end
end
-- Without what is reserved for operations, which no session can give back.
local theirs = number(KEYS[4], 'held') - number(KEYS[4], 'reserved') - holding.held
local recall = final == 'credits' and theirs > 0
-- Recall minutes that others hold and have not begun. Each needs only its current minute.
for _, counter in ipairs(months) do
  if counter.name == final and counter.left - counter.room > counter.active - step.active then
    local message = {recall = final}
    if final == 'member_minutes' then message.user_id = step.user_id end
    call(step.publish, step.limits_channel, cjson.encode(message))
    break
  end
end
local bumped = step.line ~= nil or step.ended or freed
local line = step.line
if step.ended then
  call('HDEL', KEYS[4], 's:' .. step.id)
elseif line then
  call('HSET', KEYS[4], 's:' .. step.id, line)
elseif bumped then
  line = call('HGET', KEYS[4], 's:' .. step.id) or nil
end
if bumped then call('HINCRBY', KEYS[4], 'version', 1) end
local result = answer('ok', entry, bumped)
-- To processes with sockets of the member: the figures of `usage`, as in usage.lua.
local counted = #step.minutes
for _, part in pairs(step.months) do counted = counted + math.abs(part.used) end
if step.counts and counted > 0 then
  local message = {month = step.month, as_of = result[4][5]}
  for index, name in ipairs({'member', 'org'}) do
    local found = call('HMGET', KEYS[4 + index], 'limit', 'used:' .. step.month)
    message[name] = {found[1] or '', found[2] or '0'}
  end
  call(step.publish, step.usage_channel, cjson.encode(message))
end
if bumped or recall or not alone then
  local message = {
    account = result[4][3], bumped = bumped, recall = recall, session_id = step.id,
    session = step.session, line = line, node = step.node,
  }
  if not alone then
    message.moved, message.mark = {unpack(result[3], 1, 4)}, step.mark
    message.notices, message.minutes = step.notices, step.minutes
    message.month, message.months = step.month, {result[4][1], result[4][2]}
    message.as_of = result[4][5]
  end
  call(step.publish, step.channel, cjson.encode(message))
end
return result
