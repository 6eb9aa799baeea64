-- replay: appends records again that Redis lost before they were flushed.
-- Postgres keeps what it has already, so a record that is appended twice does no harm.
--
-- KEYS   1 outbox     stream: field r, a JSON array of records for Postgres
--        2 replayed   string: the id of the newest such record (see load.lua)
-- ARGV   1 time to live of replayed, ms
--        2.. entries that were appended before: id, records, id, records …
--
-- Answers the id of each entry: its old id where it still waits, else a new id.

local ids = {}
for index = 2, #ARGV, 2 do
  local id = ARGV[index]
  if #redis.call('XRANGE', KEYS[1], id, id) == 0 then
    id = redis.call('XADD', KEYS[1], '*', 'r', ARGV[index + 1])
    redis.call('SET', KEYS[2], id, 'PX', ARGV[1])
  end
  ids[#ids + 1] = id
end
return ids
