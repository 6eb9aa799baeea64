-- The recorded minutes of a month ($2, its first day) of an organisation, or (with $3) of one
-- member, and how many of them are beyond a limit that allows overage.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        coalesce(sum(total_minutes), 0)::bigint AS minutes,
        coalesce(sum(overage_minutes), 0)::bigint AS overage_minutes
    FROM monthly_usage_cache
    WHERE tenant = $1 AND month = $2::date AND ($3::text IS NULL OR user_id = $3)
) AS answer
