-- load: puts a counter that was read from Postgres into Redis, if it is not there.
--
-- A partition that nobody has used before, or that has lost everything, begins a new epoch:
-- for a short while only what processes put back is loaded, so that nobody draws on what
-- running sessions have used already and have not written down (see assert.lua).
--
-- KEYS   1 the counter's hash   2 applied: sorted set of an account's newest entries
--        3 epoch       string: changes with every loss that was found
--        4 recovering  string, for a short while after that
--        5 unsettled   string, for a longer while: somebody may still put back a session
--        6 contained   hash: what of sessions is in the counter, by their ids (see assert.lua)
-- ARGV   1 time to live while nothing uses it, ms
--        2 the epoch that begins where there is none   3 how long it takes to recover, ms
--        4 how long it takes to settle, ms   5 '1' to load while others recover
--        6 number of fields   7.. field, value, field, value …
--        then ids of entries that are contained
--        A field i:<session id> goes to what is contained. It is apart, because nobody else
--        asks for it, and it is forgotten when nobody may still put back a session.
--
-- Answers 1 when it was loaded now, 0 when somebody else was faster, -1 when it cannot be
-- loaded yet, because the partition recovers.

local call = redis.call
if call('EXISTS', KEYS[3]) == 0 then
  call('SET', KEYS[3], ARGV[2])
  call('SET', KEYS[4], '1', 'PX', ARGV[3])
  call('SET', KEYS[5], '1', 'PX', ARGV[4])
end
if ARGV[5] ~= '1' and call('EXISTS', KEYS[4]) == 1 then return -1 end
if call('EXISTS', KEYS[1]) == 1 then return 0 end
local fields = tonumber(ARGV[6])
call('DEL', KEYS[2], KEYS[6])
for index = 7, 6 + 2 * fields, 2 do
  if string.sub(ARGV[index], 1, 2) == 'i:' then
    call('HSET', KEYS[6], string.sub(ARGV[index], 3), ARGV[index + 1])
  else
    call('HSET', KEYS[1], ARGV[index], ARGV[index + 1])
  end
end
call('PEXPIRE', KEYS[6], ARGV[1])
for index = 7 + 2 * fields, #ARGV do call('ZADD', KEYS[2], 0, ARGV[index]) end
call('PEXPIRE', KEYS[1], ARGV[1])
if #ARGV > 6 + 2 * fields then call('PEXPIRE', KEYS[2], 86400000) end
return 1
