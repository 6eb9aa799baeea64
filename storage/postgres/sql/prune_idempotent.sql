-- Deletes keys that are older than an instant, a bounded number in each call. The statement
-- finds the old keys first, and only once. A subquery might be evaluated again for every row,
-- and would then skip rows that are already locked: more than the bound would be deleted.
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
