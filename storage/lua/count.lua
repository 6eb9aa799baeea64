-- count: says how often an account's operations were done in a month, if nobody has yet.
--
-- KEYS   1 operations   hash (see spend.lua)
-- ARGV   1 month, by its first day   2 time to live while nothing uses them, ms
--        3.. operation, times, operation, times …
--
-- Answers 1 when the month was loaded now, 0 when somebody else was faster.

if redis.call('HSETNX', KEYS[1], ARGV[1], 1) == 0 then return 0 end
for index = 3, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[index] .. ':' .. ARGV[1], ARGV[index + 1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
