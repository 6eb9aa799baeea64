-- Money in that Redis has not confirmed, oldest first, with all fields of the message to the
-- account's channel.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        waiting.tenant, waiting.account_id, waiting.entry_id, waiting.amount_micros,
        entry.entry_kind, entry.reason, entry.operation, entry.priority,
        epoch_ms(entry.expires_at) AS expires_at, epoch_ms(entry.created_at) AS created_at
    FROM account_inbox AS waiting
    JOIN credit_ledger AS entry USING (tenant, account_id, entry_id)
    ORDER BY entry.position
    LIMIT $1
) AS answer
