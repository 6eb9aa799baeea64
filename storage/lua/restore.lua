-- restore: puts an open hold that Postgres has into Redis, if it is not there.
--
-- An account that was loaded after the hold had been opened has it among what it reserves,
-- and says so (h:<hold id>). One that Redis had all along, and which has lost its last
-- writes, reserves it now.
--
-- KEYS   1 hold      hash (see hold.lua)
--        2 holds     sorted set: the partition's open holds by their end
--        3 account   hash (see commit.lua)
-- ARGV   1 the hold's name in the set   2 its end, epoch ms   3 its id   4 micro-credits
--        5.. the hold's fields: name, value, name, value …
--
-- Answers 1 when it was restored now, 0 when somebody else was faster.

local call = redis.call
if call('EXISTS', KEYS[1]) == 1 then return 0 end
call('HSET', KEYS[1], unpack(ARGV, 5))
call('ZADD', KEYS[2], ARGV[2], ARGV[1])
if call('EXISTS', KEYS[3]) == 1 and call('HDEL', KEYS[3], 'h:' .. ARGV[3]) == 0 then
  call('HINCRBY', KEYS[3], 'held', ARGV[4])
  call('HINCRBY', KEYS[3], 'reserved', ARGV[4])
  call('HINCRBY', KEYS[3], 'holds', 1)
  call('HINCRBY', KEYS[3], 'live', 1)
  call('HINCRBY', KEYS[3], 'version', 1)
  call('PERSIST', KEYS[3])
end
return 1
