-- sample: takes a process's figures; the first process of a new second also adds up all of them.
--
-- KEYS   1 figures   hash: the newest figures of each process
--        2 samples   list: the sums, the newest first
--        3 watched   exists while a process wants rows of live sessions
-- ARGV   1 node id
--        2 its figures: a JSON object of numbers and of objects of numbers, with `at`, the instant
--          of these figures in cluster time
--        3 cluster time   4 figures older than this, in ms, are dropped   5 samples to keep
--
-- A sum has the figures of all processes added up, except for `lag_ms`, which is the greatest. `at`
-- is the second's beginning, and `nodes` the number of processes. Answers 1 while rows are wanted.

local function add(sum, figures)
  for name, value in pairs(figures) do
    if type(value) == 'table' then
      sum[name] = sum[name] or {}
      add(sum[name], value)
    elseif name == 'lag_ms' then
      sum[name] = math.max(sum[name] or 0, value)
    else
      sum[name] = (sum[name] or 0) + value
    end
  end
end

local now = tonumber(ARGV[3])
local second = now - now % 1000
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
local newest = redis.call('LINDEX', KEYS[2], 0)
if not newest or cjson.decode(newest).at < second then
  local sum, nodes = {}, 0
  local all = redis.call('HGETALL', KEYS[1])
  for index = 1, #all, 2 do
    local figures = cjson.decode(all[index + 1])
    if figures.at < now - tonumber(ARGV[4]) then
      redis.call('HDEL', KEYS[1], all[index])
    else
      add(sum, figures)
      nodes = nodes + 1
    end
  end
  sum.at, sum.nodes = second, nodes
  redis.call('LPUSH', KEYS[2], cjson.encode(sum))
  redis.call('LTRIM', KEYS[2], 0, ARGV[5] - 1)
end
return redis.call('EXISTS', KEYS[3])
