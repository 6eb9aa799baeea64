-- Notes that Redis has an adjustment.
UPDATE minute_adjustments
SET is_applied = true
WHERE tenant = $1 AND user_id = $2 AND entry_id = $3 AND NOT is_applied
