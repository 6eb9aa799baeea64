-- farewell: notes when a user took leave of a session that goes on, and tells every process.
--
-- Proofs of life in advance (heartbeats over HTTP) that are older end then. A process that is
-- joining does not hear the message yet; it reads the note (attach.lua).
--
-- KEYS   1 session   hash (see commit.lua)
-- ARGV   1 session id   2 when the user took leave, epoch ms   3 publish command   4 channel
--
-- Answers 1; 0 when Redis does not have the session.

local call = redis.call
if call('EXISTS', KEYS[1]) == 0 then return 0 end
local at = tonumber(ARGV[2])
if at > tonumber(call('HGET', KEYS[1], 'farewell') or '0') then
  call('HSET', KEYS[1], 'farewell', ARGV[2])
end
call(ARGV[3], ARGV[4], cjson.encode({farewell = ARGV[1], at = at}))
return 1
