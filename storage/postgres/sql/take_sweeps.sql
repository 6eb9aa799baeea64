-- Takes runs that are due for a sweep: at most $4, of the providers $3, the longest due first. The
-- taker has until $2 (epoch ms) to sweep them.
WITH due AS MATERIALIZED (
    SELECT provider, call_session
    FROM call_sessions
    WHERE sweep_at <= instant($1) AND provider = ANY ($3::text[])
    ORDER BY sweep_at
    LIMIT $4
    FOR UPDATE SKIP LOCKED
)
UPDATE call_sessions AS run SET sweep_at = instant($2)
FROM due
WHERE (run.provider, run.call_session) = (due.provider, due.call_session)
RETURNING json_build_object(
    'provider', run.provider, 'call_session', run.call_session, 'call_id', call_id,
    'rest_name', rest_name, 'ended_at', epoch_ms(ended_at),
    'swept_at', epoch_ms(swept_at), 'sweep_failures', sweep_failures,
    'seen_at', epoch_ms(seen_at)
)::text
