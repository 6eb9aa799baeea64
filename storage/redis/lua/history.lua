-- history: answers the name of this Redis's history of writes.
--
-- The name changes when Redis is restarted, and when a replica takes over from its master. Only
-- then may answered writes be missing.
--
-- KEYS   1 any key that this Redis has
--
-- Answers the name, '' where there is none; an error where the Redis user has no right to INFO.

return string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or ''
