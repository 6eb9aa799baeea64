-- retreat: detaches a process from a session that it could not serve.
--
-- If only one process is attached, and no grace runs, the caller stays attached. When the caller
-- is that process, it treats the session as one whose sockets it has lost. Otherwise no process
-- would, and the session would never end.
--
-- KEYS   1 sockets   set: the processes that have sockets of the session
--        2 node      set: the sessions that the process has sockets of
--        3 graces    sorted set: sessions whose grace runs (see commit.lua)
-- ARGV   1 node id   2 the session's name
--
-- Answers 1 when the process is detached, 0 when it stays.

local call = redis.call
if call('SCARD', KEYS[1]) == 1 and not call('ZSCORE', KEYS[3], ARGV[2]) then return 0 end
call('SREM', KEYS[1], ARGV[1])
call('SREM', KEYS[2], ARGV[2])
return 1
