-- Records an adjustment of a month's minutes; answers whether the entry is new. The trigger
-- applies it.
INSERT INTO minute_adjustments (tenant, user_id, entry_id, month, minutes, reason, created_at)
VALUES ($1, $2, $3, $4, $5, $6, instant($7))
ON CONFLICT (tenant, user_id, entry_id) DO NOTHING
RETURNING true
