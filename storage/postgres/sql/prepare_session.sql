-- Records a prepared session; answers whether it is new. A preparation that has expired (at
-- $11, epoch ms) is replaced.
INSERT INTO sessions AS session (
    tenant, session_id, state, kind, user_id, org_id, account_id, counterpart_id,
    terms, metadata, expires_at
)
VALUES (
    $1, $2, 'prepared', $3, $4, $5, $6, $7, $8::text::jsonb, $9::text::jsonb, instant($10)
)
ON CONFLICT (tenant, session_id) DO UPDATE SET
    kind = excluded.kind,
    user_id = excluded.user_id,
    org_id = excluded.org_id,
    account_id = excluded.account_id,
    counterpart_id = excluded.counterpart_id,
    terms = excluded.terms,
    metadata = excluded.metadata,
    expires_at = excluded.expires_at
WHERE session.state = 'prepared' AND session.expires_at <= instant($11)
RETURNING true
