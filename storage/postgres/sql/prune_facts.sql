-- Deletes at most $2 applied facts from before an instant ($1, epoch ms). Facts that wait or are
-- parked stay, however old. The old facts are found first, and only once (prune_idempotent.sql).
WITH old AS MATERIALIZED (
    SELECT provider, fact_key
    FROM call_facts
    WHERE received_at < instant($1) AND state = 'applied'
    ORDER BY received_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)
DELETE FROM call_facts AS kept
USING old
WHERE (kept.provider, kept.fact_key) = (old.provider, old.fact_key)
