-- hold: reserves credits for a later charge, or answers why not.
--
-- An open hold counts as live on its account, so the account stays in Redis meanwhile.
--
-- KEYS   1 account      hash (see commit.lua); of the holds: reserved, holds
--        2 hold         hash: tenant, account, amount, operation, user, month, created_at,
--                       expires_at, metadata, and state, posted, changed_at
--        3 holds        sorted set: the partition's open holds by their end
--        4 operations   hash (see spend.lua)
--        5 outbox       stream
--        6 recovering   string (see spend.lua)
-- ARGV   1 hold id   2 micro-credits, not negative   3 operation, '' for none
--        4 month, by its first day   5 the operation's limit a month, '' for none
--        6 records, JSON   7 '1' to recall what sessions hold, if that is needed
--        8 publish command   9 channel   10 the hold's name in the set
--       11 its end, epoch ms   12 the limit of open holds of an account
--       13 time to live while nothing uses the operations, ms
--       14 with this many entries in the outbox no hold is made
--       15.. the hold's fields: name, value, name, value …
--
-- Answers {status, account fields, detail, hold fields}: the statuses of spend.lua, and
--   repeated   there is a hold of this id; the hold fields have its state
--   full       the account has as many open holds as it may

local call = redis.call
local micros = tonumber(ARGV[2])
local operation, month = ARGV[3], ARGV[4]

local function answer(status, detail)
  return {status, call('HGETALL', KEYS[1]), detail or '', call('HGETALL', KEYS[2])}
end

if call('EXISTS', KEYS[2]) == 1 then return answer('repeated') end
if call('EXISTS', KEYS[1]) == 0 or call('EXISTS', KEYS[6]) == 1 then
  return answer('cold', 'account')
end
if call('XLEN', KEYS[5]) >= tonumber(ARGV[14]) then return answer('late') end
if operation ~= '' then
  if call('HEXISTS', KEYS[4], month) == 0 then return answer('cold', 'operations') end
  local times = tonumber(call('HGET', KEYS[4], operation .. ':' .. month) or '0')
  if ARGV[5] ~= '' and times >= tonumber(ARGV[5]) then
    return answer('limit', string.format('%.0f', times))
  end
end

local found = call('HMGET', KEYS[1], 'balance', 'held', 'reserved', 'charged_live', 'holds')
local balance, held, reserved = tonumber(found[1]), tonumber(found[2] or '0'), tonumber(found[3] or '0')
if micros > 0 and balance - held < micros then
  if balance - reserved < micros then return answer('short') end
  if ARGV[7] == '1' then call(ARGV[8], ARGV[9], cjson.encode({recall = true})) end
  return answer('held')
end
if tonumber(found[5] or '0') >= tonumber(ARGV[12]) then return answer('full') end

-- Reserve, count, append.
call('HINCRBY', KEYS[1], 'held', ARGV[2])
call('HINCRBY', KEYS[1], 'reserved', ARGV[2])
call('HINCRBY', KEYS[1], 'holds', 1)
call('HINCRBY', KEYS[1], 'live', 1)
call('PERSIST', KEYS[1])
call('HSET', KEYS[2], unpack(ARGV, 15))
call('ZADD', KEYS[3], ARGV[11], ARGV[10])
if operation ~= '' then
  call('HINCRBY', KEYS[4], operation .. ':' .. month, 1)
  call('PEXPIRE', KEYS[4], ARGV[13])
end
call('XADD', KEYS[5], '*', 'r', ARGV[6])

-- Publish. A hold does not change the account's balance.
local version = call('HINCRBY', KEYS[1], 'version', 1)
local gross = balance + tonumber(found[4] or '0')
call(ARGV[8], ARGV[9], cjson.encode({
  account = {
    string.format('%.0f', gross), string.format('%.0f', reserved + micros),
    string.format('%.0f', version),
  },
  bumped = true,
  credit = {
    delta = '0', reason = 'hold', entry_id = ARGV[1],
    operation = operation ~= '' and operation or nil,
  },
}))
return answer('ok')
