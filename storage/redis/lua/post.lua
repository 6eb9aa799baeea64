-- post: charges at most what a hold reserves; gives back the rest.
--
-- KEYS   1 account   hash (see commit.lua)
--        2 hold      hash (see hold.lua)
--        3 holds     sorted set: the partition's open holds by their end
--        4 outbox    stream
--        5 spends    sorted set (see spend.lua), in which the entry is noted, too
--        6 applied   sorted set: entries that were taken from the ledger (see recover.lua)
-- ARGV   1 entry id   2 micro-credits to charge, not negative   3 now, epoch ms
--        4 records, JSON   5 publish command   6 channel   7 the hold's name in the set
--        8 time to live while nothing uses the account, ms
--        9 how long a hold is known after its end, ms
--       10 the entry's metadata, JSON
--
-- Answers {status, account fields, hold fields}, with the status
--   ok        charged
--   absent    there is no such hold here, or it is `unreserved` (see restore.lua)
--   closed    the hold is not open any more; its fields have its state
--   due       the hold's time is over, and its expiry is still to be recorded
--   exceeds   the hold is for less than the charge
--   cold      the account must be loaded first

local call = redis.call
-- "-0" is no integer to Redis.
local function minus(amount) return amount == '0' and '0' or '-' .. amount end

local function answer(status)
  return {status, call('HGETALL', KEYS[1]), call('HGETALL', KEYS[2])}
end

local hold = call('HMGET', KEYS[2], 'state', 'amount', 'expires_at', 'operation', 'unreserved')
if not hold[1] then return answer('absent') end
if hold[1] ~= 'open' then return answer('closed') end
if tonumber(ARGV[3]) >= tonumber(hold[3]) then return answer('due') end
if tonumber(ARGV[2]) > tonumber(hold[2]) then return answer('exceeds') end
if call('EXISTS', KEYS[1]) == 0 then return answer('cold') end
if hold[5] then return answer('absent') end

-- Charge, give back, append. A replica may have a hold as open that the ledger has charged.
local charged = call('ZSCORE', KEYS[6], ARGV[1])
call('HSET', KEYS[2], 'state', 'posted', 'posted', ARGV[2], 'changed_at', ARGV[3],
  'metadata', ARGV[10])
call('PEXPIRE', KEYS[2], ARGV[9])
call('ZREM', KEYS[3], ARGV[7])
call('HINCRBY', KEYS[1], 'held', minus(hold[2]))
call('HINCRBY', KEYS[1], 'reserved', minus(hold[2]))
if not charged then call('HINCRBY', KEYS[1], 'balance', minus(ARGV[2])) end
call('HINCRBY', KEYS[1], 'holds', -1)
if call('HINCRBY', KEYS[1], 'live', -1) <= 0 then call('PEXPIRE', KEYS[1], ARGV[8]) end
local written = call('XADD', KEYS[4], '*', 'r', ARGV[4])
call('ZADD', KEYS[5], string.match(written, '%d+'), ARGV[1])
call('PEXPIRE', KEYS[5], ARGV[8])

-- Publish.
local version = call('HINCRBY', KEYS[1], 'version', 1)
local found = call('HMGET', KEYS[1], 'balance', 'charged_live', 'reserved')
local gross = tonumber(found[1]) + tonumber(found[2] or '0')
call(ARGV[5], ARGV[6], cjson.encode({
  account = {string.format('%.0f', gross), found[3], string.format('%.0f', version)},
  bumped = true,
  credit = {
    delta = minus(ARGV[2]), reason = 'post', entry_id = ARGV[1],
    operation = hold[4] ~= '' and hold[4] or nil,
  },
}))
return answer('ok')
