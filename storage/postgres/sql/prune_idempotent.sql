-- Forgets keys that are older than an instant, a bounded number at a time. The old ones are
-- found first and once: as a subquery they might be looked for again for every row, and
-- what is locked already is skipped then, so that more than so many would go.
WITH old AS MATERIALIZED (
    SELECT tenant, scope, key
    FROM idempotency_keys
    WHERE created_at < instant($1)
    ORDER BY created_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)
DELETE FROM idempotency_keys AS kept
USING old
WHERE (kept.tenant, kept.scope, kept.key) = (old.tenant, old.scope, old.key)
