-- oldest: the oldest entry of an outbox, and its age.
--
-- KEYS   1 outbox   stream
--
-- Answers {age in ms, id, fields}, the age by the clock that also lets keys expire; or {},
-- when the outbox is empty.

local entry = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not entry then return {} end
local time = redis.call('TIME')
local age = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(string.match(entry[1], '%d+'))
return {age, entry[1], entry[2]}
