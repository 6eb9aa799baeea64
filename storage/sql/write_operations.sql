-- What operations used. Sorted, so that flushers lock in one order.
INSERT INTO operations_usage (
    tenant, account_id, entry_id, operation, user_id, month, amount_micros, created_at,
    success, service, tokens_used, response_time_ms, metadata
)
SELECT
    tenant, account_id, entry_id, operation, user_id, month::date, amount_micros,
    instant(at_ms), success, service, tokens_used, response_time_ms, metadata::jsonb
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[],
    $8::bigint[], $9::boolean[], $10::text[], $11::bigint[], $12::bigint[], $13::text[]
) AS record (
    tenant, account_id, entry_id, operation, user_id, month, amount_micros, at_ms,
    success, service, tokens_used, response_time_ms, metadata
)
ORDER BY tenant, account_id, entry_id
ON CONFLICT (tenant, account_id, entry_id) DO NOTHING
