-- Both clocks of sessions ($2) of a tenant ($1), without those that have none.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        tenant, session_id, provider, call_id, call_session, user_id, account_id,
        epoch_ms(started_at) AS started_at, epoch_ms(ended_at) AS ended_at, elapsed_ms, facts_ms,
        provider_ms, asked_ms, reason, uncollected_ms, uncollected_micros, uncollected_minutes,
        stretches, corrections, version
    FROM provider_durations
    WHERE tenant = $1 AND session_id = ANY ($2::text[])
) AS answer
