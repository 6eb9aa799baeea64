-- The minutes of one session that are written down, in their order; the newest $3 of them
-- where that is not null.
SELECT row_to_json(answer)::text
FROM (
    SELECT *
    FROM (
        SELECT minute, epoch_ms(started_at) AS started_at, seconds, free_ms, charged_micros
        FROM usage_tracking
        WHERE tenant = $1 AND session_id = $2
        ORDER BY minute DESC
        LIMIT $3
    ) AS newest
    ORDER BY minute
) AS answer
