-- load: puts a counter from Postgres into Redis, unless it is there.
--
-- A partition without an epoch is new, or has lost everything: it begins a new epoch. For a
-- short while only processes that put back sessions may load counters, so that no step uses what
-- running sessions have used already and not yet recorded (see assert.lua).
--
-- KEYS   1 the counter's hash   2 applied: sorted set of an account's newest entries
--        3 epoch       string: changes with every loss that a process finds
--        4 recovering  string, for a short while after that
--        5 unsettled   string, for a longer while: processes may still put back sessions
--        6 contained   hash: what the counter contains of sessions, by their ids (see assert.lua)
--        7 replayed    string: the newest record that was appended to the outbox again
-- ARGV   1 time to live while nothing uses the counter, ms
--        2 the epoch to begin where there is none   3 time to live of recovering, ms
--        4 time to live of unsettled, ms   5 '1' to load also while the partition recovers
--        6 replayed, as it was before Postgres was read; `any`: it does not matter
--        7 number of fields   8.. field, value, field, value …
--        then ids of entries that the counter contains
--        A field i:<session id> goes into the hash `contained`. Only assertions need it, and
--        it expires when no process may put back a session any more.
--
-- Answers 1 when this call loaded the counter, 0 when another one was faster, -1 when it cannot
-- be loaded yet because the partition recovers, or because records were appended again while
-- Postgres was read: what is read lacks them, and who appended them may be dead.

local call = redis.call
if call('EXISTS', KEYS[3]) == 0 then
  call('SET', KEYS[3], ARGV[2])
  call('SET', KEYS[4], '1', 'PX', ARGV[3])
  call('SET', KEYS[5], '1', 'PX', ARGV[4])
end
if ARGV[5] ~= '1' and call('EXISTS', KEYS[4]) == 1 then return -1 end
if call('EXISTS', KEYS[1]) == 1 then return 0 end
if ARGV[6] ~= 'any' and (call('GET', KEYS[7]) or '') ~= ARGV[6] then return -1 end
local fields = tonumber(ARGV[7])
for index = 8, 7 + 2 * fields, 2 do
  if string.sub(ARGV[index], 1, 2) == 'i:' then
    call('HSET', KEYS[6], string.sub(ARGV[index], 3), ARGV[index + 1])
  else
    call('HSET', KEYS[1], ARGV[index], ARGV[index + 1])
  end
end
call('PEXPIRE', KEYS[6], ARGV[1])
for index = 8 + 2 * fields, #ARGV do call('ZADD', KEYS[2], 0, ARGV[index]) end
call('PEXPIRE', KEYS[1], ARGV[1])
if #ARGV > 7 + 2 * fields then call('PEXPIRE', KEYS[2], 86400000) end
return 1
