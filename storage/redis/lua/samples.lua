-- samples: the newest sums of all processes' figures (see sample.lua), as one text.
--
-- KEYS   1 samples   list: the sums, the newest first
-- ARGV   1 how many
--
-- Answers a JSON array, the newest last. One text is read in one piece, 3,600 answers are not.

local found = redis.call('LRANGE', KEYS[1], 0, ARGV[1] - 1)
local samples = {}
for index = #found, 1, -1 do
  samples[#samples + 1] = found[index]
end
return '[' .. table.concat(samples, ',') .. ']'
