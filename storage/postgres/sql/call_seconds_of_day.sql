-- The recorded seconds of a user's sessions of a kind between two instants ($4, $5, epoch ms),
-- without some sessions ($6).
SELECT coalesce(sum(seconds), 0)::bigint
FROM usage_tracking
WHERE tenant = $1 AND user_id = $2 AND kind = $3
  AND started_at >= instant($4) AND started_at < instant($5)
  AND NOT session_id = ANY ($6::text[])
