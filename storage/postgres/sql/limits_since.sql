-- Limits of organisations ('') and members that were changed in the last $1 milliseconds, by
-- the clock of Postgres, newest first.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        tenant, '' AS user_id, limit_minutes(monthly_hours_limit) AS limit_minutes,
        allow_overage, changed_at
    FROM organizations
    WHERE changed_at > now() - make_interval(secs => $1::bigint / 1000.0)
    UNION ALL
    SELECT tenant, user_id, limit_minutes(monthly_hours_limit), false, changed_at
    FROM organization_members
    WHERE changed_at > now() - make_interval(secs => $1::bigint / 1000.0)
    ORDER BY changed_at DESC
    LIMIT $2
) AS answer
