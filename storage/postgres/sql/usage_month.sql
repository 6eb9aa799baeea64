-- The record of a user's month: sessions of every kind, and minutes of the kinds that count.
-- `month` is its first day. The bounds on started_at only help the index: they are wider by a day or
-- more, because no time zone is a day away from UTC.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        (count(*) FILTER (WHERE counts))::integer AS minutes,
        coalesce(sum(seconds) FILTER (WHERE counts), 0)::bigint AS seconds,
        count(DISTINCT session_id)::integer AS sessions
    FROM usage_tracking
    WHERE tenant = $1
      AND user_id = $2
      AND month = $3::date
      AND started_at >= ($3::date - 1)::timestamp AT TIME ZONE 'UTC'
      AND started_at < ($3::date + 33)::timestamp AT TIME ZONE 'UTC'
) AS answer
