-- recount: says that an account's operation was done more often in a month than Redis knows,
-- which has lost its last writes. What it knows and Postgres does not, waits to be flushed: so
-- does a hold's being given back, which counts no more though Postgres has it as open.
--
-- KEYS   1 operations   hash (see spend.lua)
--        2.. holds that Postgres has as open for it, hashes (see hold.lua)
-- ARGV   1 month, by its first day   2 operation   3 how often it was done, at least, without
--        those that are held for
--
-- Answers 1 when that was more, 0 when it was not, or the month is not here.

local call = redis.call
local field = ARGV[2] .. ':' .. ARGV[1]
if call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
local times = tonumber(ARGV[3])
for index = 2, #KEYS do
  local state = call('HGET', KEYS[index], 'state')
  if state ~= 'voided' and state ~= 'expired' then times = times + 1 end
end
if tonumber(call('HGET', KEYS[1], field) or '0') >= times then return 0 end
call('HSET', KEYS[1], field, string.format('%.0f', times))
return 1
