-- How often an account's operations were done in a month, and the holds that are open for them,
-- with their operations.
SELECT json_build_object(
    'times', coalesce((
        SELECT json_object_agg(operation, times)
        FROM (
            SELECT operation, count(*) AS times
            FROM operations_usage
            WHERE tenant = $1 AND account_id = $2 AND month = $3 AND success
            GROUP BY operation
        ) AS done
    ), '{}'),
    'holds', coalesce((
        SELECT json_object_agg(hold_id, operation)
        FROM credit_holds
        WHERE tenant = $1 AND account_id = $2 AND month = $3
          AND state = 'open' AND operation IS NOT NULL
    ), '{}')
)::text
