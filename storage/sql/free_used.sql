-- The free time that a user has had of a kind: with one counterpart (null: with
-- anybody), in minutes that began at or after an instant (null: ever), and without one
-- session's own (null: all sessions).
SELECT coalesce(sum(free_ms), 0)::bigint
FROM usage_tracking
WHERE tenant = $1
  AND user_id = $2
  AND kind = $3
  AND free_ms > 0
  AND ($4::text IS NULL OR counterpart_id = $4)
  AND ($5::bigint IS NULL OR started_at >= instant($5))
  AND ($6::text IS NULL OR session_id <> $6)
