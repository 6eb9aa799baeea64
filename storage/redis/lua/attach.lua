-- attach: reads a session; notes a process that serves or watches it.
--
-- KEYS   1 session   hash (see commit.lua)
--        2 notices   list
--        3 sockets   set: the processes that have sockets of the session
--        4 node      set: the sessions that this process has sockets of
-- ARGV   1 node id; '' does not attach
--        2 the session's key
--        3 '1' when the process watches: from now on every step is published
--        4 the user of the socket; '' for any. A session of another user, or one that has
--          ended, is answered, but the process is not attached
--        5 when the socket asked to join. Until the process confirms the join, it may not know
--          of it; its heartbeats prove nothing of the session after that instant. 0: none
--
-- Answers {session fields, notices newest first, processes, when the user last took leave,
-- {process, when its socket asked, …} for processes that have not confirmed a join}. If the
-- session is absent, it has no fields, and the process is not attached.

local found = redis.call('HMGET', KEYS[1], 'identity', 'standing', 'grant', 'final', 'mark')
if not found[1] then return {{}, {}, {}, '0', {}} end
local user = cjson.decode(found[1]).user_id
if ARGV[1] ~= '' and (ARGV[4] == '' or ARGV[4] == user)
  and cjson.decode(found[2]).phase ~= 'ended' then
  if redis.call('SADD', KEYS[3], ARGV[1]) == 1 and ARGV[5] ~= '0' then
    redis.call('HSET', KEYS[1], 'joining:' .. ARGV[1], ARGV[5])
  end
  redis.call('SADD', KEYS[4], ARGV[2])
end
if ARGV[3] == '1' then redis.call('HSET', KEYS[1], 'watched', '1') end
local nodes, joining = redis.call('SMEMBERS', KEYS[3]), {}
for _, node in ipairs(nodes) do
  local asked_at = redis.call('HGET', KEYS[1], 'joining:' .. node)
  if asked_at then
    joining[#joining + 1] = node
    joining[#joining + 1] = asked_at
  end
end
return {found, redis.call('LRANGE', KEYS[2], 0, -1), nodes,
  redis.call('HGET', KEYS[1], 'farewell') or '0', joining}
