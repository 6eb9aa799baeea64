-- load: puts a counter that was read from Postgres into Redis, if it is not there.
--
-- KEYS   1 the counter's hash   2 applied: sorted set of an account's newest entries
-- ARGV   1 time to live while nothing uses it, ms   2 number of fields
--        3.. field, value, field, value …   then ids of entries that are contained
--
-- Answers 1 when it was loaded now, 0 when somebody else was faster.

if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local fields = tonumber(ARGV[2])
redis.call('DEL', KEYS[2])
for index = 3, 2 + 2 * fields, 2 do
  redis.call('HSET', KEYS[1], ARGV[index], ARGV[index + 1])
end
for index = 3 + 2 * fields, #ARGV do redis.call('ZADD', KEYS[2], 0, ARGV[index]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
if #ARGV > 2 + 2 * fields then redis.call('PEXPIRE', KEYS[2], 86400000) end
return 1
