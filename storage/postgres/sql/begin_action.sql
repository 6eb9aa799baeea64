-- Writes an intent into the operators' log. An attempt that is repeated finds its row.
INSERT INTO operator_actions (
    action_id, at, actor, via, action, target, tenant, reason, before, request_id
)
VALUES ($1, instant($2), $3, $4, $5, $6, $7, $8, $9::text::jsonb, $10)
ON CONFLICT (action_id) DO NOTHING
