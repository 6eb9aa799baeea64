-- count: says how often an account's operations were done in a month, if nobody has yet. A hold
-- that was given back counts no more, though its end may wait in the outbox and Postgres have it
-- as open.
--
-- KEYS   1 operations   hash (see spend.lua)
--        2.. holds that Postgres has as open for them, hashes (see hold.lua)
-- ARGV   1 month, by its first day   2 time to live while nothing uses them, ms
--        3.. the operation of each of the holds
--        then operation, times, operation, times …, without those that are held for
--
-- Answers 1 when the month was loaded now, 0 when somebody else was faster.

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
