-- Ledger entries; the trigger adds them to the balances. One statement a batch, for a
-- second one would take ledger rows after accounts, and two flushers could deadlock.
-- Sorted for the same reason, and by time, so that positions follow it within a batch.
INSERT INTO credit_ledger (
    tenant, account_id, entry_id, entry_kind, amount_micros, created_at, reason,
    operation, session_id, minute, metadata
)
SELECT
    tenant, account_id, entry_id, entry_kind, amount_micros, instant(at_ms), reason,
    operation, session_id, minute, metadata::jsonb
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[],
    $7::text[], $8::text[], $9::text[], $10::integer[], $11::text[]
) AS record (
    tenant, account_id, entry_id, entry_kind, amount_micros, at_ms,
    reason, operation, session_id, minute, metadata
)
ORDER BY tenant, account_id, at_ms, entry_id
ON CONFLICT (tenant, account_id, entry_id) DO NOTHING
