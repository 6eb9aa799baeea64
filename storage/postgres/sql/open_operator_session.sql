-- Opens a session. That of an operator is opened only while the operator is as the caller found:
-- one who was removed, or got another password meanwhile, gets none.
WITH found AS MATERIALIZED (
    SELECT name FROM operators
    WHERE name = $4::text AND password_hash IS NOT DISTINCT FROM $8::text
    FOR UPDATE
)
INSERT INTO operator_sessions (secret_hash, actor, via, operator, scope, org_id, expires_at)
SELECT $1, $2, $3, $4, $5, $6, instant($7)
WHERE $4 IS NULL OR EXISTS (SELECT FROM found)
RETURNING true
