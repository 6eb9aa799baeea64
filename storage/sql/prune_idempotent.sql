-- Forgets keys that are older than an instant, a bounded number at a time.
DELETE FROM idempotency_keys
WHERE (tenant, scope, key) IN (
    SELECT tenant, scope, key
    FROM idempotency_keys
    WHERE created_at < instant($1)
    ORDER BY created_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)
