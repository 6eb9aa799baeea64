-- replay: appends records again that Redis lost before they were flushed.
-- Postgres keeps what it has already, so a record that is appended twice does no harm.
--
-- KEYS   1 outbox   stream: field r, a JSON array of records for Postgres
-- ARGV   entries that were appended before: id, records, id, records …
--
-- Answers the id of each entry: its old id where it still waits, else a new id.

local ids = {}
for index = 1, #ARGV, 2 do
  local id = ARGV[index]
  if #redis.call('XRANGE', KEYS[1], id, id) == 0 then
    id = redis.call('XADD', KEYS[1], '*', 'r', ARGV[index + 1])
  end
  ids[#ids + 1] = id
end
return ids
