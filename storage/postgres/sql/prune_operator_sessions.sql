-- Deletes at most $4 sessions that have ended, and those of $1 beyond the newest $2.
DELETE FROM operator_sessions
WHERE secret_hash IN (
    (SELECT secret_hash FROM operator_sessions WHERE expires_at <= instant($3) LIMIT $4)
    UNION ALL
    (
        SELECT secret_hash FROM operator_sessions
        WHERE actor = $1
        ORDER BY created_at DESC, secret_hash
        OFFSET $2
        LIMIT $4
    )
)
