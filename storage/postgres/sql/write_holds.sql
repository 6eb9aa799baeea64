-- Records holds, each in the last state that the batch has of it. A row only moves forward, from
-- open to one other state, and stays there. Sorted, so that flushers lock in one order.
INSERT INTO credit_holds AS hold (
    tenant, hold_id, account_id, state, amount_micros, posted_micros, operation, user_id,
    month, created_at, expires_at, changed_at, metadata
)
SELECT
    tenant, hold_id, account_id, state, amount_micros, posted_micros, operation, user_id,
    month::date, instant(created_ms), instant(expires_ms), instant(changed_ms),
    metadata::jsonb
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[],
    $7::text[], $8::text[], $9::text[], $10::bigint[], $11::bigint[], $12::bigint[],
    $13::text[]
) AS record (
    tenant, hold_id, account_id, state, amount_micros, posted_micros, operation, user_id,
    month, created_ms, expires_ms, changed_ms, metadata
)
ORDER BY tenant, hold_id
ON CONFLICT (tenant, hold_id) DO UPDATE SET
    state = excluded.state,
    posted_micros = excluded.posted_micros,
    changed_at = excluded.changed_at,
    metadata = excluded.metadata
WHERE hold.state = 'open' AND excluded.state <> 'open'
