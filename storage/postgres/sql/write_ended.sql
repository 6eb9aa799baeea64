-- Records sessions that ended; answers those whose end this is now, and how many minutes each may
-- have (see lock_sessions.sql). Such a record is complete: it needs no earlier row, and no later
-- record changes the row. There are two exceptions. When a session was taken for lost
-- (`node_lost`) and its process comes back, the record of that process replaces the row. When
-- Redis had lost an end, and another process ended an older copy, the longer end counts, as in
-- assert.lua. Sorted, so that flushers lock in one order.
INSERT INTO sessions AS session (
    tenant, session_id, state, kind, user_id, org_id, account_id, counterpart_id,
    started_at, ended_at, reason, limit_name, elapsed_ms, free_ms, billed_ms, minutes,
    charged_micros, uncovered_ms, segments, gaps, terms, metadata, is_reported
)
SELECT
    tenant, session_id, 'ended', kind, user_id, org_id, account_id, counterpart_id,
    instant(started_ms), instant(ended_ms), reason, limit_name, elapsed_ms, free_ms,
    billed_ms, minutes, charged_micros, uncovered_ms, segments::jsonb, gaps::jsonb,
    terms::jsonb, metadata::jsonb, is_reported
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
    $8::bigint[], $9::bigint[], $10::text[], $11::text[], $12::bigint[], $13::bigint[],
    $14::bigint[], $15::integer[], $16::bigint[], $17::bigint[], $18::text[], $19::text[],
    $20::text[], $21::text[], $22::boolean[]
) AS record (
    tenant, session_id, user_id, org_id, account_id, counterpart_id, kind,
    started_ms, ended_ms, reason, limit_name, elapsed_ms, free_ms,
    billed_ms, minutes, charged_micros, uncovered_ms, segments, gaps,
    terms, metadata, is_reported
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
    ended_at = excluded.ended_at,
    reason = excluded.reason,
    limit_name = excluded.limit_name,
    elapsed_ms = excluded.elapsed_ms,
    free_ms = excluded.free_ms,
    billed_ms = excluded.billed_ms,
    minutes = excluded.minutes,
    charged_micros = excluded.charged_micros,
    uncovered_ms = excluded.uncovered_ms,
    segments = excluded.segments,
    gaps = excluded.gaps,
    terms = excluded.terms,
    metadata = excluded.metadata,
    is_reported = excluded.is_reported
WHERE session.state <> 'ended'
   OR CASE
       WHEN session.reason = 'node_lost'
           THEN excluded.reason <> 'node_lost' OR excluded.minutes > session.minutes
       ELSE excluded.reason <> 'node_lost'
           AND (excluded.elapsed_ms, excluded.charged_micros)
               > (session.elapsed_ms, session.charged_micros)
   END
RETURNING tenant, session_id, CASE WHEN reason <> 'node_lost' THEN minutes END AS minutes
