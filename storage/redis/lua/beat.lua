-- beat: proves the life of a process, and answers when others proved theirs.
--
-- KEYS   1 nodes   sorted set: processes by their last proof of life, cluster time in ms
--        2 clock   hash, of the last heartbeat of any process: beats (their number), redis (the
--                  time of Redis, in us), cluster (cluster time, in ms) and believed (the time of
--                  Redis by the process's estimate when it sent the heartbeat, in ms)
-- ARGV   1 node id   2 its cluster time   3 believed
--
-- Answers {seconds, microseconds, {node, proof, node, proof …}}; the first two are the
-- time of Redis.

-- A heartbeat that was long on its way does not take back a newer one.
redis.call('ZADD', KEYS[1], 'GT', ARGV[2], ARGV[1])
local time = redis.call('TIME')
redis.call('HINCRBY', KEYS[2], 'beats', 1)
redis.call('HSET', KEYS[2], 'redis', time[1] .. string.format('%06d', tonumber(time[2])),
  'cluster', ARGV[2], 'believed', ARGV[3])
return {time[1], time[2], redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')}
