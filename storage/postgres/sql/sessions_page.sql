-- One page of a tenant's sessions that have started, newest first. Null filters let all pass.
-- $1 tenant, $2 user, $3 counterpart, $4 kind, $5 and $6 the first instant and the instant
-- after the last, in epoch ms, $7 and $8 the last session of the page before, $9 rows.
--
-- One of the branches reads, each in the order of an index of its own: the user's, else the
-- counterpart's, else the kind's, else the tenant's. Further filters are applied to the rows
-- that the index brings, so with one filter a page costs its rows. The parameters decide which
-- branch reads, also in a plan that serves all parameters.
WITH page AS MATERIALIZED (
    (
        SELECT tenant, session_id, started_at
        FROM sessions
        WHERE $2::text IS NOT NULL
          AND tenant = $1 AND user_id = $2
          AND ($3::text IS NULL OR counterpart_id = $3)
          AND ($4::text IS NULL OR kind = $4)
          AND started_at >= coalesce(instant($5::bigint), '-infinity')
          AND started_at < coalesce(instant($6::bigint), 'infinity')
          AND (started_at, session_id)
            < (coalesce(instant($7::bigint), 'infinity'), coalesce($8::text, ''))
        ORDER BY started_at DESC, session_id DESC
        LIMIT $9
    )
    UNION ALL
    (
        SELECT tenant, session_id, started_at
        FROM sessions
        WHERE $2::text IS NULL AND $3::text IS NOT NULL
          AND tenant = $1 AND counterpart_id = $3
          AND ($4::text IS NULL OR kind = $4)
          AND started_at >= coalesce(instant($5::bigint), '-infinity')
          AND started_at < coalesce(instant($6::bigint), 'infinity')
          AND (started_at, session_id)
            < (coalesce(instant($7::bigint), 'infinity'), coalesce($8::text, ''))
        ORDER BY started_at DESC, session_id DESC
        LIMIT $9
    )
    UNION ALL
    (
        SELECT tenant, session_id, started_at
        FROM sessions
        WHERE $2::text IS NULL AND $3::text IS NULL AND $4::text IS NOT NULL
          AND tenant = $1 AND kind = $4
          AND started_at >= coalesce(instant($5::bigint), '-infinity')
          AND started_at < coalesce(instant($6::bigint), 'infinity')
          AND (started_at, session_id)
            < (coalesce(instant($7::bigint), 'infinity'), coalesce($8::text, ''))
        ORDER BY started_at DESC, session_id DESC
        LIMIT $9
    )
    UNION ALL
    (
        SELECT tenant, session_id, started_at
        FROM sessions
        WHERE $2::text IS NULL AND $3::text IS NULL AND $4::text IS NULL
          AND tenant = $1
          AND started_at >= coalesce(instant($5::bigint), '-infinity')
          AND started_at < coalesce(instant($6::bigint), 'infinity')
          AND (started_at, session_id)
            < (coalesce(instant($7::bigint), 'infinity'), coalesce($8::text, ''))
        ORDER BY started_at DESC, session_id DESC
        LIMIT $9
    )
)
SELECT row_to_json(answer)::text
FROM (
    SELECT
        session.tenant, session.session_id, state, kind, user_id, org_id, account_id,
        counterpart_id, epoch_ms(session.started_at) AS started_at,
        epoch_ms(ended_at) AS ended_at, reason, limit_name, elapsed_ms, free_ms, billed_ms,
        minutes, charged_micros, uncovered_ms, segments, gaps, terms, metadata, is_reported,
        epoch_ms(expires_at) AS expires_at
    FROM page
    JOIN sessions AS session USING (tenant, session_id)
    ORDER BY page.started_at DESC, page.session_id DESC
) AS answer
