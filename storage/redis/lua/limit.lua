-- limit: changes a loaded monthly limit of a member or an organisation.
--
-- KEYS   1 the counter's hash (see commit.lua, member and org)
-- ARGV   1 limit in minutes, '' for none   2 overage allowed, 1 or 0
--        3 publish command   4 channel of the tenant's limits
--
-- Answers 1 when the counter is here. Postgres has the limit already.

local here = redis.call('EXISTS', KEYS[1])
if here == 1 then redis.call('HSET', KEYS[1], 'limit', ARGV[1], 'overage', ARGV[2]) end
redis.call(ARGV[3], ARGV[4], '1')
return here
