-- What was corrected while a month was being loaded into Redis.
CREATE INDEX minute_adjustments_recent ON minute_adjustments (tenant, created_at);
