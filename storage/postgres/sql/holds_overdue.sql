-- Open holds that should have expired before an instant, oldest first.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        tenant, hold_id, account_id, state, amount_micros, posted_micros, operation, user_id,
        month, epoch_ms(created_at) AS created_at, epoch_ms(expires_at) AS expires_at,
        epoch_ms(changed_at) AS changed_at, metadata
    FROM credit_holds
    WHERE state = 'open' AND expires_at < instant($1)
    ORDER BY expires_at, tenant, hold_id
    LIMIT $2
) AS answer
