-- void: gives back a hold that is voided, or whose time is over.
--
-- KEYS   1 account      hash (see commit.lua)
--        2 hold         hash (see hold.lua)
--        3 holds        sorted set: the partition's open holds by their end
--        4 operations   hash (see spend.lua)
--        5 outbox       stream
-- ARGV   1 hold id   2 new state: voided, or expired (only when the hold's time is over)
--        3 now, epoch ms   4 records, JSON   5 publish command   6 channel
--        7 the hold's name in the set
--        8 time to live while nothing uses the account, ms
--        9 how long a hold is known after its end, ms
--
-- Answers {status, account fields, hold fields}: the statuses of post.lua, and
--   early     the hold cannot expire yet, because its time is not over

local call = redis.call
-- "-0" is no integer to Redis.
local function minus(amount) return amount == '0' and '0' or '-' .. amount end

local function answer(status)
  return {status, call('HGETALL', KEYS[1]), call('HGETALL', KEYS[2])}
end

local hold = call(
  'HMGET', KEYS[2], 'state', 'amount', 'expires_at', 'operation', 'month', 'unreserved')
if not hold[1] then return answer('absent') end
if hold[1] ~= 'open' then return answer('closed') end
local over = tonumber(ARGV[3]) >= tonumber(hold[3])
if ARGV[2] == 'expired' and not over then return answer('early') end
if ARGV[2] ~= 'expired' and over then return answer('due') end
if call('EXISTS', KEYS[1]) == 0 then return answer('cold') end
if hold[6] then return answer('absent') end

-- Give back, count, append.
call('HSET', KEYS[2], 'state', ARGV[2], 'changed_at', ARGV[3])
call('PEXPIRE', KEYS[2], ARGV[9])
call('ZREM', KEYS[3], ARGV[7])
call('HINCRBY', KEYS[1], 'held', minus(hold[2]))
call('HINCRBY', KEYS[1], 'reserved', minus(hold[2]))
call('HINCRBY', KEYS[1], 'holds', -1)
if call('HINCRBY', KEYS[1], 'live', -1) <= 0 then call('PEXPIRE', KEYS[1], ARGV[8]) end
-- An operation that was not done does not count in its month. Without an operation ('')
-- there is no count.
local field = hold[4] .. ':' .. hold[5]
if tonumber(call('HGET', KEYS[4], field) or '0') > 0 then
  call('HINCRBY', KEYS[4], field, -1)
end
call('XADD', KEYS[5], '*', 'r', ARGV[4])

-- Publish.
local version = call('HINCRBY', KEYS[1], 'version', 1)
local found = call('HMGET', KEYS[1], 'balance', 'charged_live', 'reserved')
local gross = tonumber(found[1]) + tonumber(found[2] or '0')
call(ARGV[5], ARGV[6], cjson.encode({
  account = {string.format('%.0f', gross), found[3], string.format('%.0f', version)},
  bumped = true,
  credit = {
    delta = '0', reason = ARGV[2] == 'expired' and 'expire' or 'void', entry_id = ARGV[1],
    operation = hold[4] ~= '' and hold[4] or nil,
  },
}))
return answer('ok')
