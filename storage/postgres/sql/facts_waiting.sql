-- How many facts of a span ($1 to $2, epoch ms, by when they came in) wait to be applied.
SELECT count(*) FROM call_facts
WHERE received_at >= instant($1) AND received_at < instant($2) AND state = 'waiting'
