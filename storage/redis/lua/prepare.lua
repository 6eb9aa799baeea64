-- prepare: makes a session that does not run yet start only as prepared.
--
-- Postgres has the preparation already. A start that looked there earlier is refused from now
-- on by what this script notes (see commit.lua). A start that was faster is found here.
--
-- KEYS   1 session     hash (see commit.lua)
--        2 prepared    string: <until when, epoch ms>:<the preparation's fingerprint>
--        3 epoch       string: changes with every loss that a process finds
--        4 recovering  string, for a short while after that
--        5 unsettled   string, for a longer while: processes may still put back sessions
-- ARGV   1 the preparation's fingerprint   2 until when it may be started, epoch ms
--        3 how long a start under way may take at most, ms
--
-- Answers
--   ok         the session can only start as prepared, or has started so
--   exists     the session has started otherwise, or there is a later preparation
--   unsettled  Redis has lost data: the session may run although Redis does not have it

local call = redis.call
if call('EXISTS', KEYS[1]) == 1 then
  return call('HGET', KEYS[1], 'prepared') == ARGV[1] and 'ok' or 'exists'
end
if call('EXISTS', KEYS[3]) == 0 or call('EXISTS', KEYS[4], KEYS[5]) > 0 then
  return 'unsettled'
end
local known = call('GET', KEYS[2])
if known and tonumber(string.match(known, '^%d+')) > tonumber(ARGV[2]) then return 'exists' end
call('SET', KEYS[2], ARGV[2] .. ':' .. ARGV[1], 'PX', ARGV[3])
return 'ok'
