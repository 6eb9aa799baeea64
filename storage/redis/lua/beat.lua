-- beat: a process proves its life, and learns who else did.
--
-- KEYS   1 nodes   sorted set: processes by their last proof of life, cluster time in ms
--        2 clock   hash: the last beat of any process: beats (how many there were), redis
--                  (the time of Redis, in us), cluster (cluster time, in ms) and believed (what the
--                  process took the time of Redis for when it sent the beat, in ms)
-- ARGV   1 node id   2 its cluster time   3 believed
--
-- Answers {seconds, microseconds, {node, proof, node, proof …}}; the first two are the
-- time of Redis.

redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
local time = redis.call('TIME')
redis.call('HINCRBY', KEYS[2], 'beats', 1)
redis.call('HSET', KEYS[2], 'redis', time[1] .. string.format('%06d', tonumber(time[2])),
  'cluster', ARGV[2], 'believed', ARGV[3])
return {time[1], time[2], redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')}
