-- For an account: the tier and the time zone that decide its allotment, what it was given for
-- each month, and whether the account exists, which means that it was ever used.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        coalesce(organization.timezone, 'UTC') AS timezone,
        coalesce(organization.tier, 'free') AS tier,
        EXISTS (SELECT FROM credit_accounts WHERE tenant = $1 AND account_id = $2)
        OR EXISTS (
            SELECT FROM sessions
            WHERE tenant = $1 AND account_id = $2 AND state <> 'prepared'
        )
        OR EXISTS (SELECT FROM operations_usage WHERE tenant = $1 AND account_id = $2)
        OR EXISTS (
            SELECT FROM credit_holds
            WHERE tenant = $1 AND account_id = $2 AND state = 'open'
        ) AS is_known,
        coalesce(
            (
                SELECT json_object_agg(month, micros)
                FROM (
                    SELECT right(name, 7) AS month, sum(amount_micros) AS micros
                    FROM credit_grants
                    WHERE tenant = $1 AND account_id = $2 AND starts_with(name, 'allotment:')
                    GROUP BY right(name, 7)
                ) AS given
            ),
            '{}'
        ) AS given
    FROM (SELECT) AS always
    LEFT JOIN organizations AS organization ON organization.tenant = $1
) AS answer
