-- overdue: the head of a script that must not run once its process has given it up.
--
-- The process answers its caller by then, who asks again and may get a contrary answer.
--
-- ARGV   the last one: the last instant at which the script may run, by the clock of this Redis,
--        epoch ms. It is taken off, so that the script does not see it.
--
-- Answers {'overdue', seconds, microseconds}, the time of Redis, and does nothing else, after
-- that instant. Otherwise the script goes on.

do
  local latest, time = tonumber(table.remove(ARGV)), redis.call('TIME')
  if time[1] * 1000 + time[2] / 1000 > latest then
    return {'overdue', time[1], time[2]}
  end
end

