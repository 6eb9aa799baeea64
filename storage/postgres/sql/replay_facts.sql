-- Lets applied facts be applied again: at most $4 of those that came in between $1 and $2 (epoch
-- ms), after the position $3. Answers their number and the last one's position.
WITH again AS MATERIALIZED (
    SELECT provider, fact_key, position
    FROM call_facts
    WHERE received_at >= instant($1) AND received_at < instant($2) AND position > $3
      AND state = 'applied'
    ORDER BY position
    LIMIT $4
    FOR UPDATE
), changed AS (
    UPDATE call_facts AS fact SET
        state = 'waiting', applied_at = NULL, due_at = instant($5), attempts = 0
    FROM again
    WHERE (fact.provider, fact.fact_key) = (again.provider, again.fact_key)
)
SELECT json_build_object('facts', count(*), 'last', coalesce(max(position), 0))::text FROM again
