-- spend: takes credits from an account at once, or answers why not.
--
-- A spend is atomic against the balance less what is held. A repeated spend is answered as
-- such, with the records of the first one, while those wait in the outbox and for ten minutes
-- more. By then they are in Postgres, where the caller looks first.
--
-- KEYS   1 account      hash (see commit.lua)
--        2 spends       sorted set: entries by the instant of their record in the outbox
--        3 operations   hash: <operation>:<month> = times, <month> = '1' once it is loaded
--        4 outbox       stream: field r, a JSON array of records for Postgres
--        5 recovering   string: exists while processes put back what Redis has lost
--        6 applied      sorted set: entries that were taken from the ledger (see recover.lua)
-- ARGV   1 entry id   2 micro-credits, not negative   3 kind: spend or expire
--        4 operation, '' for none   5 month, by its first day
--        6 '1' when it counts in the month, which only an operation does
--        7 the operation's limit a month, '' for none
--        8 records, JSON   9 '1' to recall what sessions hold, if that is needed
--       10 publish command   11 channel
--       12 time to live while nothing uses the account, ms
--       13 how long a spend is remembered at least, ms
--       14 the number of spends that are remembered in any case
--       15 with this many entries in the outbox no spend is made
--
-- Answers {status, account fields, detail, records}, with the status
--   ok         done
--   repeated   done before; the records that still wait in the outbox, if any
--   limit      the operation was done as often as the month allows; detail is how often
--   held       the balance suffices, but sessions hold too much of it
--   short      the balance does not suffice, even if sessions held nothing
--   late       the outbox is full, so no spend is made
--   cold       account or operations must be loaded first; detail names which. While the
--              partition recovers this is always the answer, and nothing can be loaded

local call = redis.call
local micros = tonumber(ARGV[2])
local operation, month = ARGV[4], ARGV[5]
local field = operation .. ':' .. month
local counts = ARGV[6] == '1'

local function answer(status, detail, records)
  return {status, call('HGETALL', KEYS[1]), detail or '', records or {}}
end

local done = call('ZSCORE', KEYS[2], ARGV[1])
if done then
  local at = string.format('%.0f', tonumber(done))
  local records = {}
  for _, entry in ipairs(call('XRANGE', KEYS[4], at, at)) do
    records[#records + 1] = entry[2][2]
  end
  return answer('repeated', '', records)
end
if call('ZSCORE', KEYS[6], ARGV[1]) then return answer('repeated') end

if call('EXISTS', KEYS[1]) == 0 or call('EXISTS', KEYS[5]) == 1 then
  return answer('cold', 'account')
end
if call('XLEN', KEYS[4]) >= tonumber(ARGV[15]) then return answer('late') end
if counts then
  if call('HEXISTS', KEYS[3], month) == 0 then return answer('cold', 'operations') end
  local times = tonumber(call('HGET', KEYS[3], field) or '0')
  if ARGV[7] ~= '' and times >= tonumber(ARGV[7]) then
    return answer('limit', string.format('%.0f', times))
  end
end

local found = call('HMGET', KEYS[1], 'balance', 'held', 'reserved', 'charged_live')
local balance, held = tonumber(found[1]), tonumber(found[2] or '0')
if micros > 0 and balance - held < micros then
  if balance - tonumber(found[3] or '0') < micros then return answer('short') end
  if ARGV[9] == '1' then call(ARGV[10], ARGV[11], cjson.encode({recall = true})) end
  return answer('held')
end

-- Take, count, append.
local written = call('XADD', KEYS[4], '*', 'r', ARGV[8])
local at = tonumber(string.match(written, '%d+'))
call('ZADD', KEYS[2], at, ARGV[1])
call('PEXPIRE', KEYS[2], ARGV[12])
if counts then
  call('HINCRBY', KEYS[3], field, 1)
  call('PEXPIRE', KEYS[3], ARGV[12])
end
-- The clock of Redis may have leapt forward: keep the newest spends, even if they look old.
local oldest = tonumber(string.match(call('XRANGE', KEYS[4], '-', '+', 'COUNT', 1)[1][1], '%d+'))
local until_ms = math.min(at - tonumber(ARGV[13]), oldest - 1)
local old = call('ZCOUNT', KEYS[2], '-inf', string.format('%.0f', until_ms))
local over = math.min(old, call('ZCARD', KEYS[2]) - tonumber(ARGV[14]))
-- With over = 0 the last rank would be -1, which means the last of all.
if over > 0 then call('ZREMRANGEBYRANK', KEYS[2], 0, over - 1) end
if tonumber(call('HGET', KEYS[1], 'live') or '0') == 0 then
  call('PEXPIRE', KEYS[1], ARGV[12])
end

-- Publish.
if micros > 0 then
  call('HINCRBY', KEYS[1], 'balance', '-' .. ARGV[2])
  local version = call('HINCRBY', KEYS[1], 'version', 1)
  local gross = balance - micros + tonumber(found[4] or '0')
  call(ARGV[10], ARGV[11], cjson.encode({
    account = {string.format('%.0f', gross), found[3] or '0', string.format('%.0f', version)},
    bumped = true,
    credit = {
      delta = '-' .. ARGV[2], reason = ARGV[3], entry_id = ARGV[1],
      operation = operation ~= '' and operation or nil,
    },
  }))
end
return answer('ok')
