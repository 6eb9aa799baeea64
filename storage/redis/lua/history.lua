-- history: says which history of writes this Redis goes on with.
--
-- It has another name when a Redis was started anew, or when it took over from the one that
-- it was a replica of: only then may writes that were answered be missing.
--
-- KEYS   1 any key that this Redis has
--
-- Answers the name, '' where there is none; an error where whoever asks may not know it.

return string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or ''
