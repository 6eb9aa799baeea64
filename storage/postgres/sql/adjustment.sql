-- One adjustment, by its id.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        tenant, user_id, entry_id, month, minutes, reason, epoch_ms(created_at) AS created_at,
        is_applied
    FROM minute_adjustments
    WHERE tenant = $1 AND user_id = $2 AND entry_id = $3
) AS answer
