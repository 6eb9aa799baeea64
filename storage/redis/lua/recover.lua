-- recover: applies entries of the ledger that an account in Redis lacks.
-- Redis is a replica without the last writes, or was emptied while entries were being recorded.
--
-- Postgres has every given entry. A loaded account contains the entries up to a position of the
-- ledger. Entries that Redis has taken since are in `applied` (money in) or in `spends` (money
-- out). The entries that this call applies go into `applied`, both kinds. The account keeps its
-- version, because every process reads it again.
--
-- KEYS   1 account   hash (see commit.lua)
--        2 applied   sorted set: the newest entries of money in that the account has taken
--        3 spends    sorted set: the account's newest spends (see spend.lua)
-- ARGV   1 now, epoch ms   2 publish command   3 channel
--        4 time to live of what is remembered, ms
--        5.. entry id, micro-credits, position, entry id …
--
-- Answers how many entries this call applied; 0 when the account is not here.

local call = redis.call
if call('EXISTS', KEYS[1]) == 0 then return 0 end
local applied = 0
local loaded = tonumber(call('HGET', KEYS[1], 'position') or '0')
for index = 5, #ARGV, 3 do
  local id = ARGV[index]
  if tonumber(ARGV[index + 2]) > loaded and not call('ZSCORE', KEYS[2], id) and not call('ZSCORE', KEYS[3], id) then
    call('ZADD', KEYS[2], ARGV[1], id)
    call('HINCRBY', KEYS[1], 'balance', ARGV[index + 1])
    applied = applied + 1
  end
end
if applied > 0 then
  call('PEXPIRE', KEYS[2], ARGV[4])
  call(ARGV[2], ARGV[3], cjson.encode({reload = true}))
end
return applied
