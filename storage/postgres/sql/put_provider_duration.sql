-- Records both clocks of a session; answers whether the row still had the version before $20 (0:
-- there was none).
INSERT INTO provider_durations AS known (
    tenant, session_id, provider, call_id, call_session, user_id, account_id, started_at,
    ended_at, elapsed_ms, facts_ms, provider_ms, asked_ms, reason, uncollected_ms,
    uncollected_micros, uncollected_minutes, stretches, corrections, version, settled_at
)
VALUES (
    $1, $2, $3, $4, $5, $6, $7, instant($8), instant($9), $10, $11, $12, $13, $14, $15, $16, $17,
    $18::text::jsonb, $19::text::jsonb, $20, now()
)
ON CONFLICT (tenant, session_id) DO UPDATE SET
    account_id = excluded.account_id,
    started_at = excluded.started_at,
    ended_at = excluded.ended_at,
    elapsed_ms = excluded.elapsed_ms,
    facts_ms = excluded.facts_ms,
    provider_ms = excluded.provider_ms,
    asked_ms = excluded.asked_ms,
    reason = excluded.reason,
    uncollected_ms = excluded.uncollected_ms,
    uncollected_micros = excluded.uncollected_micros,
    uncollected_minutes = excluded.uncollected_minutes,
    stretches = excluded.stretches,
    corrections = excluded.corrections,
    version = excluded.version,
    settled_at = excluded.settled_at
WHERE known.version = excluded.version - 1
RETURNING true
