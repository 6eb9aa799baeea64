-- An account's grants that are not used up, in the order in which they burn.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        tenant, account_id, entry_id, amount_micros, used_micros, expired_micros, priority,
        epoch_ms(expires_at) AS expires_at, epoch_ms(granted_at) AS granted_at, name
    FROM credit_grants
    WHERE tenant = $1 AND account_id = $2 AND NOT is_exhausted
    ORDER BY priority, expires_at NULLS LAST, position
    LIMIT $3
) AS answer
