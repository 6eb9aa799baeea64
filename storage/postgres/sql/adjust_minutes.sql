-- Records an adjustment of a month's minutes; answers whether the entry is new. The trigger
-- applies it. With an idempotency key ($8 to $10: its scope, its name, and when its work began),
-- nothing is recorded once the key has an answer or belongs to another attempt, as in
-- post_entry.sql.
WITH claimed AS MATERIALIZED (
    SELECT FROM idempotency_keys
    WHERE tenant = $1 AND scope = $8::text AND key = $9::text AND status IS NULL
      AND created_at = $10::timestamptz
    FOR UPDATE
)
INSERT INTO minute_adjustments (tenant, user_id, entry_id, month, minutes, reason, created_at)
SELECT $1, $2, $3, $4::date, $5::integer, $6, instant($7)
WHERE $8 IS NULL OR EXISTS (SELECT FROM claimed)
ON CONFLICT (tenant, user_id, entry_id) DO NOTHING
RETURNING true
