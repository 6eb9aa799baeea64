-- Records minutes of sessions; answers the keys of those that are new. Sorted, so that flushers
-- lock in one order.
INSERT INTO usage_tracking (
    tenant, session_id, minute, seconds, user_id, org_id, account_id, counterpart_id,
    kind, started_at, month, counts, charged_micros, free_ms
)
SELECT
    tenant, session_id, minute, seconds, user_id, org_id, account_id, counterpart_id,
    kind, instant(started_ms), month::date, counts, charged_micros, free_ms
FROM unnest(
    $1::text[], $2::text[], $3::integer[], $4::integer[], $5::text[], $6::text[],
    $7::text[], $8::text[], $9::text[], $10::bigint[], $11::text[], $12::boolean[],
    $13::bigint[], $14::bigint[]
) AS record (
    tenant, session_id, minute, seconds, user_id, org_id,
    account_id, counterpart_id, kind, started_ms, month, counts,
    charged_micros, free_ms
)
ORDER BY tenant, session_id, minute
ON CONFLICT (tenant, session_id, minute) DO NOTHING
RETURNING tenant, session_id, minute
