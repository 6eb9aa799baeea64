-- Records money in: the ledger entry and its row in the inbox, both or neither; answers
-- whether the entry is new. With an idempotency key ($12 to $14: its scope, its name, and when its
-- work began), nothing is recorded once the key has an answer or belongs to another attempt: a
-- statement that comes late changes nothing that was refused meanwhile. The key's row stays locked,
-- so an answer of the key waits for a statement under way.
WITH claimed AS MATERIALIZED (
    SELECT FROM idempotency_keys
    WHERE tenant = $1 AND scope = $12::text AND key = $13::text AND status IS NULL
      AND created_at = $14::timestamptz
    FOR UPDATE
), locked AS MATERIALIZED (
    SELECT lock_accounts(ARRAY[$1::text], ARRAY[$2::text])
    WHERE $12 IS NULL OR EXISTS (SELECT FROM claimed)
), posted AS (
    INSERT INTO credit_ledger (
        tenant, account_id, entry_id, entry_kind, amount_micros, created_at, reason,
        operation, metadata, priority, expires_at
    )
    SELECT
        $1, $2, $3, $4, $5::bigint, instant($6), $7, $8, $9::text::jsonb, $10::integer,
        instant($11)
    FROM locked
    ON CONFLICT (tenant, account_id, entry_id) DO NOTHING
    RETURNING tenant, account_id, entry_id, amount_micros
)
INSERT INTO account_inbox (tenant, account_id, entry_id, amount_micros)
SELECT tenant, account_id, entry_id, amount_micros FROM posted
RETURNING true
