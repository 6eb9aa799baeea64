-- One page of the sessions that are live in the record, after one of them: their tenants and
-- ids, and whether their minutes are reported by clients.
SELECT row_to_json(answer)::text
FROM (
    SELECT tenant, session_id, is_reported
    FROM sessions
    WHERE state = 'live' AND (tenant, session_id) > ($1, $2)
    ORDER BY tenant, session_id
    LIMIT $3
) AS answer
