-- recount: raises how often an operation was done, after a loss in Redis.
-- What Redis has and Postgres lacks waits to be flushed. So a hold that Redis gave back does not
-- count, although Postgres still has it as open.
--
-- KEYS   1 operations   hash (see spend.lua)
--        2.. hashes of the holds for it that Postgres has as open (see hold.lua)
-- ARGV   1 month, by its first day   2 operation   3 how often it was done at least, without
--        open holds
--
-- Answers 1 when the number was raised, 0 when not, or when the month is not here.

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
