-- look: answers a process that starts which processes there are, and their time.
--
-- KEYS   1 nodes   sorted set (see beat.lua)   2 clock   hash (see beat.lua)
-- ARGV   1 '1' to ask live processes for a heartbeat   2 publish command   3 channel
--
-- Answers {seconds, microseconds, {node, proof …}, {beats, redis, cluster, believed}, heard}: the
-- time of Redis, every process, the last heartbeat ('' for missing fields), how many were asked.

local heard = 0
if ARGV[1] == '1' then heard = redis.call(ARGV[2], ARGV[3], '{}') end
local time = redis.call('TIME')
local last = redis.call('HMGET', KEYS[2], 'beats', 'redis', 'cluster', 'believed')
return {time[1], time[2], redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'),
  {last[1] or '', last[2] or '', last[3] or '', last[4] or ''}, heard}
