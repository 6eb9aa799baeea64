-- Records sessions that started. A row only moves forward (prepared, live, ended), so a row that
-- is live or ended already stays as it is. Sorted, so that flushers lock in one order.
INSERT INTO sessions AS session (
    tenant, session_id, state, kind, user_id, org_id, account_id, counterpart_id,
    started_at, terms, metadata, is_reported
)
SELECT
    tenant, session_id, 'live', kind, user_id, org_id, account_id, counterpart_id,
    instant(started_ms), terms::jsonb, metadata::jsonb, is_reported
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
    $8::bigint[], $9::text[], $10::text[], $11::boolean[]
) AS record (
    tenant, session_id, user_id, org_id, account_id, counterpart_id, kind,
    started_ms, terms, metadata, is_reported
)
ORDER BY tenant, session_id
ON CONFLICT (tenant, session_id) DO UPDATE SET
    state = excluded.state,
    kind = excluded.kind,
    user_id = excluded.user_id,
    org_id = excluded.org_id,
    account_id = excluded.account_id,
    counterpart_id = excluded.counterpart_id,
    started_at = excluded.started_at,
    terms = excluded.terms,
    metadata = coalesce(excluded.metadata, session.metadata),
    is_reported = excluded.is_reported
WHERE session.state = 'prepared'
