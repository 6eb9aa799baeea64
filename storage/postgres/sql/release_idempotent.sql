-- Deletes a key whose work began at $4 and has no answer, so that it may be tried again.
DELETE FROM idempotency_keys
WHERE tenant = $1 AND scope = $2 AND key = $3 AND status IS NULL AND created_at = $4
