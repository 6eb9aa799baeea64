-- A tenant's adjustments from after an instant.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        tenant, user_id, entry_id, month, minutes, reason, epoch_ms(created_at) AS created_at
    FROM minute_adjustments
    WHERE tenant = $1 AND created_at > instant($2)
    ORDER BY minute_adjustments.created_at, entry_id
) AS answer
