-- acknowledge: removes entries that Postgres has, or refused for good, from an outbox.
--
-- KEYS   1 outbox      stream
--        2 watermark   string: every entry with this id or a lower one has left the outbox
--        3 rejected    stream: fields entry, error, and the fields of the entry
-- ARGV   1 consumer group   2 about how many entries the rejected stream keeps
--        then for every entry:
--          its id, why Postgres refused it ('' when it has it), its number of records
--
-- Answers {entries, records, rejected}: how many this call removed. An entry that was already
-- acknowledged is not there any more, so it is not counted twice.

local call = redis.call
local outbox, group = KEYS[1], ARGV[1]
local entries, records, rejected = 0, 0, 0

for index = 3, #ARGV, 3 do
  local id, refusal, size = unpack(ARGV, index, index + 2)
  -- The first write frees memory: after a first write Redis lets a script go on when it is
  -- full, and only the flusher makes room in a full Redis.
  call('XACK', outbox, group, id)
  if refusal ~= '' then
    local found = call('XRANGE', outbox, id, id)[1]
    if found then
      call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[2], '*', 'entry', id, 'error', refusal,
        unpack(found[2]))
      rejected = rejected + 1
    end
  end
  if call('XDEL', outbox, id) == 1 then
    entries = entries + 1
    if refusal == '' then records = records + tonumber(size) end
  end
end

-- Entries are delivered in the order of their ids. So every entry below the lowest pending one
-- has left the outbox; if none is pending, every entry up to the last delivered one has.
local function before(id)
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  if seq ~= '0' then return ms .. '-' .. string.format('%.0f', seq - 1) end
  return string.format('%.0f', ms - 1) .. '-18446744073709551615'
end

local groups = redis.pcall('XINFO', 'GROUPS', outbox)
if not groups.err then
  for _, flat in ipairs(groups) do
    local info = {}
    for field = 1, #flat, 2 do info[flat[field]] = flat[field + 1] end
    if info.name == group and info.pending > 0 then
      call('SET', KEYS[2], before(call('XPENDING', outbox, group)[2]))
    elseif info.name == group then
      call('SET', KEYS[2], info['last-delivered-id'])
    end
  end
end
return {entries, records, rejected}
