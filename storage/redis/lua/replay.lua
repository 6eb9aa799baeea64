-- replay: appends records to a partition's outbox again that Redis lost before they were
-- flushed. What Postgres has already is left as it is there, so a record too many is none.
--
-- KEYS   1 outbox   stream: field r, a JSON array of records for Postgres
-- ARGV   entries that were appended before: id, records, id, records …
--
-- Answers the id of each entry now: its own where it still waits, else a new one.

local ids = {}
for index = 1, #ARGV, 2 do
  local id = ARGV[index]
  if id == '' or #redis.call('XRANGE', KEYS[1], id, id) == 0 then
    id = redis.call('XADD', KEYS[1], '*', 'r', ARGV[index + 1])
  end
  ids[#ids + 1] = id
end
return ids
