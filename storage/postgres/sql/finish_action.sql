-- Writes the outcome of an action, unless it is the newest one already.
INSERT INTO operator_outcomes (action_id, at, outcome, code, after)
SELECT $1, instant($2), $3, $4, $5::text::jsonb
WHERE NOT EXISTS (
    SELECT FROM (
        SELECT outcome, code FROM operator_outcomes
        WHERE action_id = $1
        ORDER BY position DESC
        LIMIT 1
    ) AS newest
    WHERE newest.outcome = $3::text AND newest.code IS NOT DISTINCT FROM $4::text
)
