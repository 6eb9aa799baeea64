-- The newest adjustments of all tenants from after an instant, applied or not.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        tenant, user_id, entry_id, month, minutes, reason, epoch_ms(created_at) AS created_at
    FROM minute_adjustments
    WHERE created_at > instant($1)
    ORDER BY minute_adjustments.created_at DESC
    LIMIT $2
) AS answer
