-- The recorded minutes of one session, in their order; only the newest $3, unless $3 is null.
SELECT row_to_json(answer)::text
FROM (
    SELECT *
    FROM (
        SELECT minute, epoch_ms(started_at) AS started_at, seconds, free_ms, charged_micros, month
        FROM usage_tracking
        WHERE tenant = $1 AND session_id = $2
        ORDER BY minute DESC
        LIMIT $3
    ) AS newest
    ORDER BY minute
) AS answer
