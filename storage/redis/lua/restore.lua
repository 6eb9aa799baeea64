-- restore: brings a hold to its state in Postgres, after a loss.
--
-- An account that was loaded while the hold was open reserves it already, and names it in a
-- field h:<hold id>. An account that Redis had all along, without its last writes, reserves the
-- hold now. While the account is cold, nothing reserves the hold, and its field `unreserved` says
-- so. The account that is loaded then names the hold, unless the hold has ended before. So such a
-- hold ends only after this script has run once more.
--
-- A hold that has ended, and that Redis has as open or still reserves, is given back.
-- Its charge is an entry of the ledger (see recover.lua). If nothing was charged, the operation
-- does not count in its month (see void.lua). The account keeps its version, because every
-- process reads it again.
--
-- KEYS   1 hold      hash (see hold.lua)
--        2 holds     sorted set: the partition's open holds by their end
--        3 account   hash (see commit.lua)
--        4 operations   hash (see spend.lua)
-- ARGV   1 the hold's name in the set   2 its end, epoch ms   3 its id   4 micro-credits
--        5 its state   6 publish command   7 channel
--        8 time to live while nothing uses the account, ms
--        9 the field that counts its operation
--       10.. the hold's fields: name, value, name, value …
--
-- Answers 1 when this call changed something, 0 when Redis had it already.

local call = redis.call
local state = call('HGET', KEYS[1], 'state')
local unreserved = call('HGET', KEYS[1], 'unreserved')

if ARGV[5] ~= 'open' then
  local reserved = call('HDEL', KEYS[3], 'h:' .. ARGV[3]) == 1
  -- The account was loaded without the hold, or is cold. It is never cold otherwise.
  local nothing = unreserved and not reserved
  if state then reserved = state == 'open' end
  if not reserved then return 0 end
  if ARGV[5] ~= 'posted' and tonumber(call('HGET', KEYS[4], ARGV[9]) or '0') > 0 then
    call('HINCRBY', KEYS[4], ARGV[9], -1)
  end
  call('DEL', KEYS[1])
  call('ZREM', KEYS[2], ARGV[1])
  if nothing then return 1 end
  local less = ARGV[4] == '0' and '0' or '-' .. ARGV[4]
  call('HINCRBY', KEYS[3], 'held', less)
  call('HINCRBY', KEYS[3], 'reserved', less)
  call('HINCRBY', KEYS[3], 'holds', -1)
  if call('HINCRBY', KEYS[3], 'live', -1) <= 0 then call('PEXPIRE', KEYS[3], ARGV[8]) end
  call(ARGV[6], ARGV[7], cjson.encode({reload = true}))
  return 1
end

if state and not unreserved then return 0 end
call('HSET', KEYS[1], unpack(ARGV, 10))
call('ZADD', KEYS[2], ARGV[2], ARGV[1])
if call('EXISTS', KEYS[3]) == 0 then return call('HSET', KEYS[1], 'unreserved', 1) end
call('HDEL', KEYS[1], 'unreserved')
if call('HDEL', KEYS[3], 'h:' .. ARGV[3]) == 0 then
  call('HINCRBY', KEYS[3], 'held', ARGV[4])
  call('HINCRBY', KEYS[3], 'reserved', ARGV[4])
  call('HINCRBY', KEYS[3], 'holds', 1)
  call('HINCRBY', KEYS[3], 'live', 1)
  call('PERSIST', KEYS[3])
  call(ARGV[6], ARGV[7], cjson.encode({reload = true}))
end
return 1
