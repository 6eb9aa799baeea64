-- account: reads an account, with the line of each of its sessions.
--
-- KEYS   1 account   hash; see commit.lua
--
-- Answers its fields and values in turn, as one JSON array; {} when the account is cold. A
-- client reads one long string a hundred times faster than a thousand short ones.

return cjson.encode(redis.call('HGETALL', KEYS[1]))
