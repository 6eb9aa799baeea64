-- count: loads how often operations were done in a month, unless loaded.
-- A hold that was given back does not count, even while its end waits in the outbox and
-- Postgres has the hold as open.
--
-- KEYS   1 operations   hash (see spend.lua)
--        2.. hashes of the holds for operations that Postgres has as open (see hold.lua)
-- ARGV   1 month, by its first day   2 time to live while nothing uses them, ms
--        3.. the operation of each of the holds
--        then operation, times, operation, times …, where times excludes holds
--
-- Answers 1 when this call loaded the month, 0 when another one was faster.

local call = redis.call
if call('HSETNX', KEYS[1], ARGV[1], 1) == 0 then return 0 end
for index = #KEYS + 2, #ARGV, 2 do
  call('HSET', KEYS[1], ARGV[index] .. ':' .. ARGV[1], ARGV[index + 1])
end
for index = 2, #KEYS do
  local state = call('HGET', KEYS[index], 'state')
  if state ~= 'voided' and state ~= 'expired' then
    call('HINCRBY', KEYS[1], ARGV[index + 1] .. ':' .. ARGV[1], 1)
  end
end
call('PEXPIRE', KEYS[1], ARGV[2])
return 1
