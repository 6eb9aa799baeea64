-- Keeps the answer. The first one stays: whoever took over came to the same.
UPDATE idempotency_keys
SET status = $4, response = $5
WHERE tenant = $1 AND scope = $2 AND key = $3 AND status IS NULL
