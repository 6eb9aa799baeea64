-- adjust: corrects a month of a member and of the organisation, each once.
--
-- Postgres has the adjustment already. A counter that is not here is left alone: when it is
-- loaded, it has the adjustment in its figures, and its id while a process may still apply it.
--
-- KEYS   1 member   hash (see commit.lua), and a:<user id>/<entry id> for adjustments
--        2 org      hash: the same
-- ARGV   1 user id/entry id   2 month, by its first day   3 minutes, signed
--        4 publish command    5 channel of the tenant's limits    6 channel of the member's month
--
-- Answers how many of the two counters this call changed.

local changed = 0
for _, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 1 and redis.call('HSETNX', key, 'a:' .. ARGV[1], 1) == 1 then
    redis.call('HINCRBY', key, 'used:' .. ARGV[2], ARGV[3])
    changed = changed + 1
  end
end
if changed > 0 then
  for _, channel in ipairs({ARGV[5], ARGV[6]}) do
    redis.call(ARGV[4], channel, cjson.encode({adjusted = true}))
  end
end
return changed
