-- Records ledger entries ($1 to $11), which the trigger adds to the balances, and the usage of
-- operations ($12 to $24). It is one statement for both, because a spend waits for it, and is
-- then one transaction. It is one statement for each batch, because a second one would lock
-- ledger rows after accounts, and two flushers could deadlock. Rows are sorted for the same
-- reason, and by time, so that positions follow time within a batch. Positions are taken when
-- the accounts are locked. The post of a hold that ended in another way is left out: Redis
-- decided that post on a copy that lacked the end. The hold's row, which is written before,
-- decides.
WITH locked AS MATERIALIZED (
    SELECT lock_accounts($1::text[], $2::text[])
), posted AS (
    INSERT INTO credit_ledger (
        tenant, account_id, entry_id, entry_kind, amount_micros, created_at, reason,
        operation, session_id, minute, metadata
    )
    SELECT
        tenant, account_id, entry_id, entry_kind, amount_micros, instant(at_ms), reason,
        operation, session_id, minute, metadata::jsonb
    FROM locked, unnest(
        $1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[],
        $7::text[], $8::text[], $9::text[], $10::integer[], $11::text[]
    ) AS record (
        tenant, account_id, entry_id, entry_kind, amount_micros, at_ms,
        reason, operation, session_id, minute, metadata
    )
    WHERE NOT (entry_kind = 'post' AND EXISTS (
        SELECT FROM credit_holds AS hold
        WHERE hold.tenant = record.tenant
          AND hold.hold_id = substr(record.entry_id, 6)
          AND hold.state <> 'open'
          AND (hold.state, hold.posted_micros) <> ('posted', -record.amount_micros)
    ))
    ORDER BY tenant, account_id, at_ms, entry_id
    ON CONFLICT (tenant, account_id, entry_id) DO NOTHING
)
INSERT INTO operations_usage (
    tenant, account_id, entry_id, operation, user_id, month, amount_micros, created_at,
    success, service, tokens_used, response_time_ms, metadata
)
SELECT
    tenant, account_id, entry_id, operation, user_id, month::date, amount_micros,
    instant(at_ms), success, service, tokens_used, response_time_ms, metadata::jsonb
FROM unnest(
    $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[], $18::bigint[],
    $19::bigint[], $20::boolean[], $21::text[], $22::bigint[], $23::bigint[], $24::text[]
) AS record (
    tenant, account_id, entry_id, operation, user_id, month, amount_micros, at_ms,
    success, service, tokens_used, response_time_ms, metadata
)
WHERE NOT (starts_with(entry_id, 'post:') AND EXISTS (
    SELECT FROM credit_holds AS hold
    WHERE hold.tenant = record.tenant
      AND hold.hold_id = substr(record.entry_id, 6)
      AND hold.account_id = record.account_id
      AND hold.state <> 'open'
      AND (hold.state, hold.posted_micros) <> ('posted', record.amount_micros)
))
ORDER BY tenant, account_id, entry_id
ON CONFLICT (tenant, account_id, entry_id) DO NOTHING
