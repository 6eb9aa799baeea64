-- Writes the outcome of an action, unless one stands that outweighs it: what is done stays done, and
-- a refusal stays, whatever a repeated attempt ends with.
INSERT INTO operator_outcomes (action_id, at, outcome, code, after)
SELECT $1, instant($2), $3, $4, $5::text::jsonb
WHERE NOT EXISTS (
    SELECT FROM operator_outcomes
    WHERE action_id = $1
      AND array_position(ARRAY['done', 'refused', 'failed'], outcome)
          <= array_position(ARRAY['done', 'refused', 'failed'], $3::text)
)
