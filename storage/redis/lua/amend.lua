-- amend: charges a hold that has ended in Redis otherwise than in the record what the record says.
--
-- The record had an end of it first, which a replica lacked: so it was ended once more, of an
-- older copy. What is left of that is forgotten here, and the recorded end counts.
--
-- KEYS   1 hold         hash (see hold.lua)
--        2 account      hash (see commit.lua)
--        3 operations   hash (see spend.lua)
--        4 applied      sorted set: entries that were taken from the ledger (see recover.lua)
-- ARGV   1 its recorded state   2 micro-credits that it was charged by the record
--        3 the id of their entry in the ledger   4 now, epoch ms
--        5 publish command   6 channel   7 time to live while nothing uses the account, ms
--
-- Answers 1 when it was changed now, 0 where Redis has the same, or no end of it.

local call = redis.call
local hold = call('HMGET', KEYS[1], 'state', 'posted', 'operation', 'month')
if not hold[1] or hold[1] == 'open' then return 0 end
if hold[1] == ARGV[1] and hold[2] == ARGV[2] then return 0 end

-- An operation counts in its month where it was done (see void.lua); none counts where it is ''.
local field = hold[3] .. ':' .. hold[4]
if ARGV[1] == 'posted' and hold[1] ~= 'posted' then
  if call('HEXISTS', KEYS[3], hold[4]) == 1 then call('HINCRBY', KEYS[3], field, 1) end
elseif ARGV[1] ~= 'posted' and hold[1] == 'posted' then
  if tonumber(call('HGET', KEYS[3], field) or '0') > 0 then call('HINCRBY', KEYS[3], field, -1) end
end
call('DEL', KEYS[1])
if call('EXISTS', KEYS[2]) == 0 then return 1 end

-- Where the recorded entry was taken already, nothing else was charged (see post.lua).
if not call('ZSCORE', KEYS[4], ARGV[3]) then
  if ARGV[2] ~= '0' then
    call('ZADD', KEYS[4], ARGV[4], ARGV[3])
    call('PEXPIRE', KEYS[4], ARGV[7])
  end
  call('HINCRBY', KEYS[2], 'balance', string.format('%.0f', tonumber(hold[2]) - tonumber(ARGV[2])))
end
call('HINCRBY', KEYS[2], 'version', 1)
call(ARGV[5], ARGV[6], cjson.encode({reload = true}))
return 1
