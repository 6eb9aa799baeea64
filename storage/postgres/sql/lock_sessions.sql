-- Locks the given sessions, so that no other transaction writes their minutes or ends meanwhile.
-- Answers those that have ended, and how many minutes each may have (null: any number, because
-- the end consists of the minutes that Postgres had). Sorted, so that flushers lock in one order.
WITH locked AS MATERIALIZED (
    SELECT tenant, session_id, session.state, session.reason, session.minutes
    FROM unnest($1::text[], $2::text[]) AS asked (tenant, session_id)
    JOIN sessions AS session USING (tenant, session_id)
    ORDER BY tenant, session_id
    FOR NO KEY UPDATE OF session
)
SELECT tenant, session_id, CASE WHEN reason <> 'node_lost' THEN minutes END AS minutes
FROM locked
WHERE state = 'ended'
