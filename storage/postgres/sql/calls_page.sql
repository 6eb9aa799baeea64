-- One page of runs, newest first. $1 state, $2 user, $3 organisation of the user, $4 provider; null
-- lets all pass. $5, $6, $7: the instant (epoch ms), provider and run of the last one of the page
-- before; $8 rows. One of the branches reads, each in the order of an index of its own.
WITH page AS MATERIALIZED (
    (
        SELECT DISTINCT run.seen_at, run.provider, run.call_session
        FROM call_participants AS person
        JOIN call_sessions AS run USING (provider, call_session)
        WHERE $2::text IS NOT NULL
          AND person.user_id = $2
          AND ($3::text IS NULL OR person.org_id = $3)
          AND ($4::text IS NULL OR person.provider = $4)
          AND CASE $1::text
                WHEN 'parked' THEN run.is_parked
                WHEN 'active' THEN NOT run.is_parked AND run.ended_at IS NULL
                WHEN 'ended' THEN NOT run.is_parked AND run.ended_at IS NOT NULL
                ELSE true
              END
          AND (person.seen_at, person.provider, person.call_session)
            < (coalesce(instant($5::bigint), 'infinity'), coalesce($6::text, ''), coalesce($7::text, ''))
        ORDER BY run.seen_at DESC, run.provider DESC, run.call_session DESC
        LIMIT $8
    )
    UNION ALL
    (
        SELECT seen_at, provider, call_session
        FROM call_sessions
        WHERE $2::text IS NULL AND $1::text = 'parked' AND is_parked
          AND ($4::text IS NULL OR provider = $4)
          AND (seen_at, provider, call_session)
            < (coalesce(instant($5::bigint), 'infinity'), coalesce($6::text, ''), coalesce($7::text, ''))
        ORDER BY seen_at DESC, provider DESC, call_session DESC
        LIMIT $8
    )
    UNION ALL
    (
        SELECT seen_at, provider, call_session
        FROM call_sessions
        WHERE $2::text IS NULL AND $1::text = 'active' AND NOT is_parked AND ended_at IS NULL
          AND ($4::text IS NULL OR provider = $4)
          AND (seen_at, provider, call_session)
            < (coalesce(instant($5::bigint), 'infinity'), coalesce($6::text, ''), coalesce($7::text, ''))
        ORDER BY seen_at DESC, provider DESC, call_session DESC
        LIMIT $8
    )
    UNION ALL
    (
        SELECT seen_at, provider, call_session
        FROM call_sessions
        WHERE $2::text IS NULL AND $1::text = 'ended' AND NOT is_parked AND ended_at IS NOT NULL
          AND ($4::text IS NULL OR provider = $4)
          AND (seen_at, provider, call_session)
            < (coalesce(instant($5::bigint), 'infinity'), coalesce($6::text, ''), coalesce($7::text, ''))
        ORDER BY seen_at DESC, provider DESC, call_session DESC
        LIMIT $8
    )
    UNION ALL
    (
        SELECT seen_at, provider, call_session
        FROM call_sessions
        WHERE $2::text IS NULL AND $1::text IS NULL
          AND ($4::text IS NULL OR provider = $4)
          AND (seen_at, provider, call_session)
            < (coalesce(instant($5::bigint), 'infinity'), coalesce($6::text, ''), coalesce($7::text, ''))
        ORDER BY seen_at DESC, provider DESC, call_session DESC
        LIMIT $8
    )
)
SELECT row_to_json(answer)::text
FROM (
    SELECT
        provider, call_session, call_id, rest_name,
        CASE WHEN is_parked THEN 'parked' WHEN ended_at IS NULL THEN 'active' ELSE 'ended' END
            AS state,
        epoch_ms(run.seen_at) AS seen_at, epoch_ms(started_at) AS started_at,
        epoch_ms(ended_at) AS ended_at, epoch_ms(swept_at) AS swept_at
    FROM page
    JOIN call_sessions AS run USING (provider, call_session)
    ORDER BY run.seen_at DESC, provider DESC, call_session DESC
) AS answer
