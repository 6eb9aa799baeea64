-- credit: applies one ledger entry to an account that is in Redis, once.
--
-- The entry is in Postgres already, because money in is written there first. An account that
-- is not here is left alone: when it is loaded, it contains the entry.
--
-- KEYS   1 account   hash (see commit.lua)
--        2 applied   sorted set: the newest entries that this account has taken
-- ARGV   1 entry id   2 micro-credits, signed   3 now, epoch ms
--        4 publish command   5 channel   6 reason   7 entries remembered at least
--        8 how long an entry is remembered at least, ms
--        9 time to live of what is remembered, ms
--
-- Answers {taken, balance, gross, reserved, version}: taken is 1 when this call applied it.

if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call(ARGV[4], ARGV[5], cjson.encode({reload = true}))
  return {0, '0', '0', '0', '0'}
end
local taken = 0
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  taken = 1
  redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
  -- Young entries are kept: after a loss recover.lua looks for them.
  local old = redis.call('ZCOUNT', KEYS[2], '-inf', tonumber(ARGV[3]) - tonumber(ARGV[8]))
  local over = math.min(old, redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[7]))
  if over > 0 then redis.call('ZREMRANGEBYRANK', KEYS[2], 0, over - 1) end
  redis.call('PEXPIRE', KEYS[2], ARGV[9])
  redis.call('HINCRBY', KEYS[1], 'balance', ARGV[2])
  redis.call('HINCRBY', KEYS[1], 'version', 1)
end
local found = redis.call('HMGET', KEYS[1], 'balance', 'charged_live', 'reserved', 'version')
local gross = string.format('%.0f', tonumber(found[1]) + tonumber(found[2] or '0'))
if taken == 1 then
  redis.call(ARGV[4], ARGV[5], cjson.encode({
    account = {gross, found[3] or '0', found[4]}, bumped = true,
    credit = {delta = ARGV[2], reason = ARGV[6], entry_id = ARGV[1]},
  }))
end
return {taken, found[1], gross, found[3] or '0', found[4]}
