-- oldest: answers an outbox's oldest entry, its age, and the epoch.
--
-- KEYS   1 outbox   stream   2 epoch   string: changes with every loss that a process finds
--
-- Answers {epoch, age in ms, id, fields}, or {epoch} when the outbox is empty. The age is by
-- the clock of Redis, by which keys expire, too.

local epoch = redis.call('GET', KEYS[2]) or ''
local entry = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not entry then return {epoch} end
local time = redis.call('TIME')
local age = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(string.match(entry[1], '%d+'))
return {epoch, age, entry[1], entry[2]}
