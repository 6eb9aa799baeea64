-- Deletes at most $4 sessions that have ended, and those of $1 beyond the newest $2.
-- A token's subject may have the name of an operator ($5), or of a person in another organisation
-- ($6): each of them has sessions of its own.
DELETE FROM operator_sessions
WHERE secret_hash IN (
    (SELECT secret_hash FROM operator_sessions WHERE expires_at <= instant($3) LIMIT $4)
    UNION ALL
    (
        SELECT secret_hash FROM operator_sessions
        WHERE actor = $1 AND operator IS NOT DISTINCT FROM $5 AND org_id IS NOT DISTINCT FROM $6
        ORDER BY created_at DESC, secret_hash
        OFFSET $2
        LIMIT $4
    )
)
