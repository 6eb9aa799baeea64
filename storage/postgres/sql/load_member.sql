-- The limits of a member and of the organisation, and the minutes that both used in the given
-- months. Without rows there are no limits, the time zone is UTC, and nothing is used. Also the
-- ids of the organisation's adjustments that Redis has not confirmed, or that were made after $6
-- (null: of no others). The figures contain these already, so they must not be applied again.
-- `recorded` is the minutes of sessions that the figures contain: of sessions that have not
-- ended, or that ended after $4 (null: of none), of the member, and with $5 of the whole
-- organisation.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        coalesce(organization.timezone, 'UTC') AS timezone,
        coalesce(organization.tier, 'free') AS tier,
        coalesce(organization.allow_overage, false) AS allow_overage,
        limit_minutes(organization.monthly_hours_limit) AS org_limit_minutes,
        limit_minutes(member.monthly_hours_limit) AS member_limit_minutes,
        coalesce(
            (
                SELECT json_agg(used)
                FROM (
                    SELECT
                        asked.month,
                        coalesce(sum(cache.total_minutes) FILTER (WHERE cache.user_id = $2), 0)
                            AS member_minutes,
                        coalesce(sum(cache.total_minutes), 0) AS org_minutes
                    FROM unnest($3::date[]) AS asked (month)
                    LEFT JOIN monthly_usage_cache AS cache
                        ON cache.tenant = $1 AND cache.month = asked.month
                    GROUP BY asked.month
                    ORDER BY asked.month
                ) AS used
            ),
            '[]'
        ) AS months,
        ARRAY(
            SELECT user_id || '/' || entry_id
            FROM minute_adjustments
            WHERE tenant = $1 AND (NOT is_applied OR created_at > instant($6))
            ORDER BY created_at, entry_id
        ) AS adjustment_ids,
        coalesce(
            (
                SELECT json_agg(recorded)
                FROM (
                    SELECT
                        session_id,
                        session.user_id,
                        count(*) AS minutes,
                        sum(used.charged_micros) AS charged_micros,
                        sum(used.free_ms) AS free_ms
                    FROM sessions AS session
                    JOIN usage_tracking AS used USING (tenant, session_id)
                    WHERE session.tenant = $1
                      AND (session.user_id = $2 OR $5::boolean)
                      AND (session.ended_at IS NULL OR session.ended_at > instant($4))
                      AND $4::bigint IS NOT NULL
                      AND used.counts
                    GROUP BY session_id, session.user_id
                    ORDER BY session_id
                ) AS recorded
            ),
            '[]'
        ) AS recorded
    FROM (SELECT) AS always
    LEFT JOIN organizations AS organization ON organization.tenant = $1
    LEFT JOIN organization_members AS member ON member.tenant = $1 AND member.user_id = $2
) AS answer
