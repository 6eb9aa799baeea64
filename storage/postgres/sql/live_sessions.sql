-- A page of the sessions that run as far as the record knows: their tenants and ids, after
-- one of them, and whether their clients count for themselves.
SELECT row_to_json(answer)::text
FROM (
    SELECT tenant, session_id, is_reported
    FROM sessions
    WHERE state = 'live' AND (tenant, session_id) > ($1, $2)
    ORDER BY tenant, session_id
    LIMIT $3
) AS answer
