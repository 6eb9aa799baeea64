-- beat: a process proves its life, and learns who else did.
--
-- KEYS   1 nodes   sorted set: processes by their last proof of life, cluster time in ms
-- ARGV   1 node id   2 its cluster time
--
-- Answers {seconds, microseconds, {node, proof, node, proof …}}; the first two are the
-- time of Redis, by which processes set their clocks.

redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
local time = redis.call('TIME')
return {time[1], time[2], redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')}
