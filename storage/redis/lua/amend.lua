-- amend: corrects a hold that ended in Redis otherwise than in the record.
--
-- The record had an end of the hold first. A replica lacked this end, so the hold ended once
-- more, from an older copy. This script undoes the second end: the recorded end counts.
--
-- KEYS   1 hold         hash (see hold.lua)
--        2 account      hash (see commit.lua)
--        3 operations   hash (see spend.lua)
--        4 applied      sorted set: entries that were taken from the ledger (see recover.lua)
-- ARGV   1 the recorded state   2 the recorded charge, in micro-credits
--        3 the id of the charge's entry in the ledger   4 now, epoch ms
--        5 publish command   6 channel   7 time to live while nothing uses the account, ms
--
-- Answers 1 when this call changed something, 0 when Redis has the same end, or none.

local call = redis.call
local hold = call('HMGET', KEYS[1], 'state', 'posted', 'operation', 'month')
if not hold[1] or hold[1] == 'open' then return 0 end
if hold[1] == ARGV[1] and hold[2] == ARGV[2] then return 0 end

-- A posted operation counts in its month (see void.lua). Without an operation ('') there is no
-- count.
local field = hold[3] .. ':' .. hold[4]
if ARGV[1] == 'posted' and hold[1] ~= 'posted' then
  if call('HEXISTS', KEYS[3], hold[4]) == 1 then call('HINCRBY', KEYS[3], field, 1) end
elseif ARGV[1] ~= 'posted' and hold[1] == 'posted' then
  if tonumber(call('HGET', KEYS[3], field) or '0') > 0 then call('HINCRBY', KEYS[3], field, -1) end
end
call('DEL', KEYS[1])
if call('EXISTS', KEYS[2]) == 0 then return 1 end

-- If Redis has taken the recorded entry already, it has charged nothing else (see post.lua).
if not call('ZSCORE', KEYS[4], ARGV[3]) then
  if ARGV[2] ~= '0' then
    call('ZADD', KEYS[4], ARGV[4], ARGV[3])
    call('PEXPIRE', KEYS[4], ARGV[7])
  end
  call('HINCRBY', KEYS[2], 'balance', string.format('%.0f', tonumber(hold[2]) - tonumber(ARGV[2])))
end
call(ARGV[5], ARGV[6], cjson.encode({reload = true}))
return 1
