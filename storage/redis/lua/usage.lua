-- usage: reads what is used of a month, and its limits, for a member and the organisation.
--
-- KEYS   1 member, 2 org   hashes (see commit.lua)
-- ARGV   1 month, by its first day
--
-- Answers a JSON object: month; member and org, each {limit, '' for none; used minutes}; and
-- as_of, the instant of the figures, because a message may overtake this answer. commit.lua and
-- track_minute.lua publish the same object. '' when a counter is cold.

local message = {month = ARGV[1]}
for index, name in ipairs({'member', 'org'}) do
  if redis.call('EXISTS', KEYS[index]) == 0 then return '' end
  local found = redis.call('HMGET', KEYS[index], 'limit', 'used:' .. ARGV[1])
  message[name] = {found[1] or '', found[2] or '0'}
end
local time = redis.call('TIME')
message.as_of = time[1] .. string.format('%06d', tonumber(time[2]))
return cjson.encode(message)
