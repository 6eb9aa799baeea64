-- All that a user used before a month, from the cache of months, and the number of sessions
-- that the user ever started.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        coalesce(sum(cache.total_minutes), 0)::bigint AS minutes,
        coalesce(sum(cache.total_seconds), 0)::bigint AS seconds,
        (
            SELECT count(*)
            FROM sessions
            WHERE tenant = $1 AND user_id = $2 AND state <> 'prepared'
        ) AS sessions
    FROM monthly_usage_cache AS cache
    WHERE cache.tenant = $1 AND cache.user_id = $2 AND cache.month < $3::date
) AS answer
