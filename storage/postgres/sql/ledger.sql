-- One page of an account's ledger, newest first, below a position (null: from the newest).
SELECT row_to_json(answer)::text
FROM (
    SELECT
        position, entry_id, entry_kind, amount_micros, reason, operation, session_id,
        minute, priority, epoch_ms(expires_at) AS expires_at, metadata,
        epoch_ms(created_at) AS created_at
    FROM credit_ledger
    WHERE tenant = $1 AND account_id = $2 AND ($3::bigint IS NULL OR position < $3)
    ORDER BY position DESC
    LIMIT $4
) AS answer
