-- Adjustments that Redis has not confirmed, oldest first.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        tenant, user_id, entry_id, month, minutes, reason, epoch_ms(created_at) AS created_at
    FROM minute_adjustments
    WHERE NOT is_applied
    ORDER BY tenant, minute_adjustments.created_at
    LIMIT $1
) AS answer
