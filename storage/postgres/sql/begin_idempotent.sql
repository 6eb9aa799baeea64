-- Begins work under a key, or takes over work that began more than $5 ms ago and never
-- finished; otherwise answers the stored answer. No row means that another process began
-- between this statement's snapshot and its insert: ask again.
WITH begun AS (
    INSERT INTO idempotency_keys AS known (tenant, scope, key, fingerprint)
    VALUES ($1, $2, $3, $4)
    ON CONFLICT (tenant, scope, key) DO UPDATE SET created_at = now()
    WHERE known.status IS NULL
      AND known.fingerprint = excluded.fingerprint
      AND known.created_at <= now() - $5::bigint * interval '1 millisecond'
    RETURNING fingerprint, created_at
)
SELECT
    true AS fresh, fingerprint, created_at, NULL::smallint AS status, NULL::bytea AS response
FROM begun
UNION ALL
SELECT false, fingerprint, created_at, status, response
FROM idempotency_keys
WHERE tenant = $1 AND scope = $2 AND key = $3 AND NOT EXISTS (SELECT FROM begun)
