-- Both clocks of the sessions of one run, at most $3.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        duration.tenant, duration.session_id, provider, call_id, call_session, duration.user_id,
        account_id, epoch_ms(started_at) AS started_at, epoch_ms(ended_at) AS ended_at,
        elapsed_ms, facts_ms, provider_ms, asked_ms, reason, uncollected_ms, uncollected_micros,
        uncollected_minutes, stretches, corrections, version
    FROM provider_durations AS duration
    WHERE EXISTS (
        SELECT FROM call_participants AS person
        WHERE person.tenant = duration.tenant AND person.session_id = duration.session_id
          AND person.provider = $1 AND person.call_session = $2
    )
    ORDER BY duration.tenant, duration.session_id
    LIMIT $3
) AS answer
