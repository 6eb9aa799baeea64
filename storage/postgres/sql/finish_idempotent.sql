-- Keeps the answer of who began at $6, or took over then. Of one who was overtaken nothing
-- is kept: the other's answer counts, which may be another one.
UPDATE idempotency_keys
SET status = $4, response = $5
WHERE tenant = $1 AND scope = $2 AND key = $3 AND status IS NULL AND created_at = $6
