-- One entry of an account's ledger, by its id.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        position, entry_id, entry_kind, amount_micros, reason, operation, session_id,
        minute, priority, epoch_ms(expires_at) AS expires_at, metadata,
        epoch_ms(created_at) AS created_at
    FROM credit_ledger
    WHERE tenant = $1 AND account_id = $2 AND entry_id = $3
) AS answer
