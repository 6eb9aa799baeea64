-- How often an account's operations were done in a month, or are held for now.
SELECT coalesce(json_object_agg(operation, times), '{}')::text
FROM (
    SELECT operation, count(*) AS times
    FROM (
        SELECT operation
        FROM operations_usage
        WHERE tenant = $1 AND account_id = $2 AND month = $3 AND success
        UNION ALL
        SELECT operation
        FROM credit_holds
        WHERE tenant = $1 AND account_id = $2 AND month = $3
          AND state = 'open' AND operation IS NOT NULL
    ) AS done
    GROUP BY operation
) AS counted
