-- Sessions that run as far as the record knows and whose clients count for themselves: their
-- tenants and ids, and how many minutes of each are written down; at most $1, those with the
-- newest minutes.
SELECT row_to_json(answer)::text
FROM (
    SELECT session.tenant, session.session_id, used.minutes
    FROM sessions AS session
    CROSS JOIN LATERAL (
        SELECT count(*) AS minutes, max(started_at) AS newest_at
        FROM usage_tracking
        WHERE tenant = session.tenant AND session_id = session.session_id
    ) AS used
    WHERE session.state = 'live' AND session.is_reported AND used.minutes > 0
    ORDER BY used.newest_at DESC
    LIMIT $1
) AS answer
