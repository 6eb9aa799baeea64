-- Stores the answer of the process that began, or took over, at $6. If another process has taken
-- over since, nothing is stored: the answer of that process counts, and may differ.
UPDATE idempotency_keys
SET status = $4, response = $5
WHERE tenant = $1 AND scope = $2 AND key = $3 AND status IS NULL AND created_at = $6
