-- Notes a sweep ($5, epoch ms; null: it failed), and when the next one is due ($4; null: none).
UPDATE call_sessions SET
    sweep_at = instant($4),
    swept_at = coalesce(instant($5), swept_at),
    sweep_failures = CASE WHEN $5::bigint IS NULL THEN sweep_failures + 1 ELSE 0 END
WHERE provider = $1 AND call_session = $2 AND sweep_at = instant($3)
