-- oldest: answers an outbox's oldest entry, its age, and the epoch.
--
-- KEYS   1 outbox     stream   2 epoch   string: changes with every loss that a process finds
--        3 replayed   string: the newest record that was appended again (see replay.lua)
--
-- Answers {epoch, replayed, waits, age in ms, id, fields}, or {epoch, replayed, waits} when the
-- outbox is empty. `waits` is 1 while a record that was appended again is in the outbox. The age is
-- by the clock of Redis, by which keys expire, too.

local epoch = redis.call('GET', KEYS[2]) or ''
local replayed = redis.call('GET', KEYS[3]) or ''
local waits = replayed ~= '' and #redis.call('XRANGE', KEYS[1], '-', replayed, 'COUNT', 1) or 0
local entry = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not entry then return {epoch, replayed, waits} end
local time = redis.call('TIME')
local age = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(string.match(entry[1], '%d+'))
return {epoch, replayed, waits, age, entry[1], entry[2]}
