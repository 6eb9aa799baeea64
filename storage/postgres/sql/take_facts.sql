-- Takes over facts whose process did not apply them in time: at most $3, the oldest first. The
-- taker has until $2 (epoch ms), and later with each failed attempt.
WITH due AS MATERIALIZED (
    SELECT provider, fact_key
    FROM call_facts
    WHERE state = 'waiting' AND due_at <= instant($1)
    ORDER BY due_at
    LIMIT $3
    FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE call_facts AS fact SET
        attempts = attempts + 1,
        due_at = instant($1) + (instant($2) - instant($1)) * (1 << least(attempts, 6))
    FROM due
    WHERE (fact.provider, fact.fact_key) = (due.provider, due.fact_key)
    RETURNING
        fact.provider, fact.fact_key, position, call_id, call_session, fact.fact, attempts
)
SELECT row_to_json(answer)::text
FROM (SELECT * FROM taken ORDER BY position) AS answer
