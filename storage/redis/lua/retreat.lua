-- retreat: takes a process off a session that it has joined and could not serve.
--
-- Where one process alone serves the session, and no grace runs, whoever asks stays noted: if that
-- is this one, it looks after the session as one whose sockets it has lost. Otherwise nobody would,
-- and it would run on without end.
--
-- KEYS   1 sockets   set: the processes that have sockets of the session
--        2 node      set: the sessions that the process has sockets of
--        3 graces    sorted set: sessions whose grace runs (see commit.lua)
-- ARGV   1 node id   2 the session's name
--
-- Answers 1 when the process is off, 0 when it stays.

local call = redis.call
if call('SCARD', KEYS[1]) == 1 and not call('ZSCORE', KEYS[3], ARGV[2]) then return 0 end
call('SREM', KEYS[1], ARGV[1])
call('SREM', KEYS[2], ARGV[2])
return 1
