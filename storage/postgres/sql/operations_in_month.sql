-- How often an account did each operation in a month, and its open holds for operations of that
-- month.
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
