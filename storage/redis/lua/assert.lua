-- assert: puts back a session that Redis has lost, as a process knows it.
--
-- Redis came back empty, or is a replica that lacks the last writes. The script moves every
-- counter by the difference between what the process knows of the session and what the counter
-- contains of it. That is the older copy of the session that is still here or, where there is
-- none, what Postgres had when the counter was loaded (`contained`, see load.lua). So any number
-- of processes may assert a session, any number of times, in any order. The script does not
-- check for room, because what was used is used.
--
-- KEYS   1 session   2 notices   3 sockets   4 account   5 member   6 org   7 free
--        8 live      9 node     10 graces    (see commit.lua)
--       11 epoch       string: changes with every loss that a process finds
--       12 recovering  string, for a short while: meanwhile only data is put back
--       13 unsettled   string, for a longer while: processes may still put back sessions
--       14 to 17  contained: hashes, for account, member, org and free
--       18 running     set: the user's live sessions of the kind (see commit.lua)
-- ARGV   1 the session, JSON; see storage/redis/recovery.py, encode_assertion
--
-- Answers {status, detail}, with the status
--   ok      Redis has the session now
--   known   Redis has the session with this very step
--   other   Redis has another step, and that step counts: a newer one, one of the same version
--           that a process made from an older copy before this assertion, an end that a process
--           made from an older copy, or, where the asserted session has ended too, the longer
--           one of both ends
--   forked  Redis has another step, and the asserted session counts: it has ended, and Redis
--           has no longer end; or the versions are equal, and its client has paused it, or more
--           of it is settled. Detail is the version that it must exceed, so that every process
--           learns of it. An end is final, because its receipt is out
--   cold    account, member, org or free must be loaded first; detail names them

local asserted = cjson.decode(ARGV[1])
local call = redis.call
local whole = function(number) return number == 0 and '0' or string.format('%.0f', number) end
local number = function(key, field) return tonumber(call('HGET', key, field) or '0') or 0 end
local id = asserted.id

local function present()
  if asserted.present then
    call('SADD', KEYS[3], asserted.node)
    call('SADD', KEYS[9], asserted.session)
    call('HDEL', KEYS[1], 'joining:' .. asserted.node)
  end
end

-- Whether the asserted session counts, and not the other step of the same version that Redis has.
-- If the other step has completed more minutes, it counts, because those are on record.
local function prevails(standing)
  if asserted.kept < standing.minutes_kept then return false end
  if standing.phase == 'active' and asserted.paused then return true end
  return asserted.settled > standing.settled_ms
end

-- Whether the asserted end counts, and not the end that Redis has. Both were made, one of them on
-- an older copy. The longer one counts, in Postgres too (write_ended.sql).
local function outlasts(standing)
  if asserted.settled ~= standing.settled_ms then return asserted.settled > standing.settled_ms end
  return asserted.charged > standing.charged_micros
end

local found = call('HMGET', KEYS[1], 'version', 'standing', 'grant', 'mark')
local version = tonumber(found[1] or '-1')
local standing = found[2] and cjson.decode(found[2])
local is_over = standing and standing.phase == 'ended'
local has_same = (found[4] or '') == asserted.mark and 'known' or 'other'
if asserted.ended and is_over and version > 0 and not outlasts(standing) then
  return {has_same, ''}
end
if version >= asserted.version then
  -- A session that comes from the record only (server/recovery/lost_sessions.py) has version 0, and
  -- never prevails.
  if asserted.version > 0
    and (asserted.ended or version == asserted.version and not is_over and prevails(standing)) then
    return {'forked', whole(version)}
  end
  if version == asserted.version and not is_over then present() end
  return {has_same, ''}
end

-- What the counters already contain of the session.
local older = standing
local was_live = older and not is_over

-- A partition that is not empty has lost its last writes only: begin a recovery, in which all
-- processes look. A session that comes from the record (version 0) begins none.
if asserted.version > 0 and call('EXISTS', KEYS[12]) == 0 then
  call('SET', KEYS[11], asserted.epoch)
  call('SET', KEYS[12], '1', 'PX', asserted.recovery_ms)
  call('SET', KEYS[13], '1', 'PX', asserted.settling_ms)
end

-- A process ended an older copy, and its receipt is out. Raise the version of that end above the
-- asserted one, so that every process learns of the end. Version 0 is an end of the record only: a
-- process that still knows the session goes on with it.
if version > 0 and not was_live and not asserted.ended then
  local raised = whole(asserted.version + 1)
  local standing = string.gsub(found[2], '"version":%d+', '"version":' .. raised, 1)
  call('HSET', KEYS[1], 'version', raised, 'standing', standing)
  call(asserted.publish, asserted.channel, cjson.encode({again = id, node = asserted.node}))
  return {'other', ''}
end

local cold = {}
if call('EXISTS', KEYS[4]) == 0 then cold[#cold + 1] = 'account' end
if asserted.counts and call('EXISTS', KEYS[5]) == 0 then cold[#cold + 1] = 'member' end
if asserted.counts and call('EXISTS', KEYS[6]) == 0 then cold[#cold + 1] = 'org' end
if asserted.shares and call('EXISTS', KEYS[7]) == 0 then cold[#cold + 1] = 'free' end
if #cold > 0 then return {'cold', table.concat(cold, ',')} end

-- What the counters contain of the session.
local grant = found[1] and cjson.decode(found[3]) or {held_micros = 0, held_minutes = {}}
local was_active = older and older.phase == 'active'
local included = function(index) return number(KEYS[10 + index], id) end

-- The account.
local charged = included(4)
if older then charged = older.charged_micros end
local is_live = not asserted.ended
local live_change = (is_live and 1 or 0) - (was_live and 1 or 0)
local active_change = (asserted.active and 1 or 0) - (was_active and 1 or 0)
call('HINCRBY', KEYS[4], 'balance', whole(charged - asserted.charged))
call('HINCRBY', KEYS[4], 'held', whole(asserted.held - grant.held_micros))
call('HINCRBY', KEYS[4], 'charged_live',
  whole((is_live and asserted.charged or 0) - (was_live and older.charged_micros or 0)))
call('HINCRBY', KEYS[4], 'burn', whole(active_change * asserted.burn))
local touched = {KEYS[4]}

-- The months: minutes by the month in which they began, without those already contained.
if asserted.counts then
  for index = 5, 6 do
    local key = KEYS[index]
    touched[#touched + 1] = key
    local counted = included(index)
    if older then counted = math.ceil(older.settled_ms / 60000) end
    for part, range in ipairs(asserted.minutes) do
      local following = asserted.minutes[part + 1]
      local past = following and following[2] or asserted.counted
      local due = past - math.max(range[2], counted)
      if due > 0 then call('HINCRBY', key, 'used:' .. range[1], whole(due)) end
    end
    if counted > asserted.counted then
      -- Postgres has a minute of a step whose answer was lost. The process makes it again.
      local last = asserted.minutes[#asserted.minutes]
      call('HINCRBY', key, 'used:' .. last[1], whole(asserted.counted - counted))
    end
    for month, minutes in pairs(asserted.held_minutes) do
      call('HINCRBY', key, 'held:' .. month, whole(minutes))
    end
    for month, minutes in pairs(grant.held_minutes) do
      call('HINCRBY', key, 'held:' .. month, whole(-minutes))
    end
    call('HINCRBY', key, 'active', whole(active_change))
  end
end

-- The shared allowance of free time.
if asserted.shares then
  touched[#touched + 1] = KEYS[7]
  local taken = included(7)
  if older then taken = older.free_ms end
  call('HINCRBY', KEYS[7], 'used', whole(asserted.free_ms - taken))
end
for _, key in ipairs(touched) do
  if call('HINCRBY', key, 'live', live_change) > 0 then
    call('PERSIST', key)
  else
    call('PEXPIRE', key, asserted.idle_ms)
  end
end

-- The session.
call('HSET', KEYS[1], 'version', whole(asserted.version), 'identity', asserted.identity,
  'standing', asserted.standing, 'grant', asserted.grant, 'final', asserted.final,
  'mark', asserted.mark)
-- It is not known whether an observer is on another process: publish steps in any case.
call('HSET', KEYS[1], 'watched', '1')
call('DEL', KEYS[2])
for _, notice in ipairs(asserted.notices) do call('LPUSH', KEYS[2], notice) end
call('ZREM', KEYS[10], asserted.session)
if asserted.ended then
  call('DEL', KEYS[3])
  call('SREM', KEYS[8], asserted.session)
  call('SREM', KEYS[9], asserted.session)
  if asserted.live_max > 0 then call('SREM', KEYS[18], asserted.session) end
  call('PEXPIRE', KEYS[1], asserted.idle_ms)
  call('PEXPIRE', KEYS[2], asserted.idle_ms)
  call('HDEL', KEYS[4], 's:' .. id)
else
  call('PERSIST', KEYS[1])  -- an end of the record only has set a time to live
  call('SADD', KEYS[8], asserted.session)
  if asserted.live_max > 0 then call('SADD', KEYS[18], asserted.session) end
  call('HSET', KEYS[4], 's:' .. id, asserted.line)
  if asserted.grace_until then
    call('ZADD', KEYS[10], whole(asserted.grace_until), asserted.session)
  end
  present()
end

-- Publish: projections of the account are out of date.
local message = {reload = true}
-- Other processes may have read the older copy, and computed steps from it.
if older then message.again, message.node = id, asserted.node end
call(asserted.publish, asserted.channel, cjson.encode(message))
return {'ok', ''}
