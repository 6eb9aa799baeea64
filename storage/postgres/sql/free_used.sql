-- The free time of a kind that a user has used: with one counterpart (null: with any), in
-- sessions that began at $5 or later and before $6 (null: ever). Also how much of it each
-- session used that has not ended, or that ended after $7 (null: none). A session uses the free
-- time of the day on which it began, even if it lasts into the next day.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        coalesce(sum(had.free_ms), 0)::bigint AS used_ms,
        coalesce(
            json_agg(had) FILTER (
                WHERE $7::bigint IS NOT NULL AND (had.ended_at IS NULL OR had.ended_at > instant($7))
            ),
            '[]'
        ) AS recorded
    FROM (
        SELECT
            used.session_id, session.ended_at,
            count(*) AS minutes,
            sum(used.charged_micros) AS charged_micros,
            sum(used.free_ms) AS free_ms
        FROM usage_tracking AS used
        LEFT JOIN sessions AS session USING (tenant, session_id)
        WHERE used.tenant = $1
          AND used.user_id = $2
          AND used.kind = $3
          AND used.free_ms > 0
          AND ($4::text IS NULL OR used.counterpart_id = $4)
          AND ($5::bigint IS NULL OR used.started_at >= instant($5))
          AND ($5::bigint IS NULL OR coalesce(session.started_at, used.started_at) >= instant($5))
          AND ($6::bigint IS NULL OR coalesce(session.started_at, used.started_at) < instant($6))
        GROUP BY used.session_id, session.ended_at
    ) AS had
) AS answer
