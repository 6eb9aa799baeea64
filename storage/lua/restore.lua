-- restore: puts an open hold that Postgres has into Redis, if it is not there.
--
-- The account that it is part of is loaded with what its open holds reserve.
--
-- KEYS   1 hold    hash (see hold.lua)
--        2 holds   sorted set: the partition's open holds by their end
-- ARGV   1 the hold's name in the set   2 its end, epoch ms
--        3.. the hold's fields: name, value, name, value …
--
-- Answers 1 when it was restored now, 0 when somebody else was faster.

if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
return 1
