-- One page of the sessions that are live in the record and whose clients count for themselves,
-- after one of them: their tenants and ids, and how many minutes of each are written down. Only
-- the minutes of this page are counted.
SELECT row_to_json(answer)::text
FROM (
    SELECT session.tenant, session.session_id, used.minutes
    FROM (
        SELECT tenant, session_id
        FROM sessions
        WHERE state = 'live' AND is_reported AND (tenant, session_id) > ($1, $2)
        ORDER BY tenant, session_id
        LIMIT $3
    ) AS session
    CROSS JOIN LATERAL (
        SELECT count(*) AS minutes
        FROM usage_tracking
        WHERE tenant = session.tenant AND session_id = session.session_id
    ) AS used
    ORDER BY session.tenant, session.session_id
) AS answer
