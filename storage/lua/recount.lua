-- recount: says that an account's operation was done more often in a month than Redis knows,
-- which has lost its last writes. What it knows and Postgres does not, waits to be flushed.
--
-- KEYS   1 operations   hash (see spend.lua)
-- ARGV   1 month, by its first day   2 operation   3 how often, at least
--
-- Answers 1 when that was more, 0 when it was not, or the month is not here.

local field = ARGV[2] .. ':' .. ARGV[1]
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
if tonumber(redis.call('HGET', KEYS[1], field) or '0') >= tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], field, ARGV[3])
return 1
