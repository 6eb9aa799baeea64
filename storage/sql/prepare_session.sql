-- A session that a backend prepared; answers whether it is new.
INSERT INTO sessions (
    tenant, session_id, state, kind, user_id, org_id, account_id, counterpart_id,
    terms, metadata
)
VALUES ($1, $2, 'prepared', $3, $4, $5, $6, $7, $8::text::jsonb, $9::text::jsonb)
ON CONFLICT (tenant, session_id) DO NOTHING
RETURNING true
