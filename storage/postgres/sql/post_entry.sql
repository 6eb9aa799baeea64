-- Records money in: the ledger entry and its row in the inbox, both or neither; answers
-- whether the entry is new.
WITH locked AS MATERIALIZED (
    SELECT lock_accounts(ARRAY[$1::text], ARRAY[$2::text])
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
