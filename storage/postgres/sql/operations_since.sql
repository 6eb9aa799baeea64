-- How often operations were done in their month, and the open holds for them. Only operations
-- that were done or held for after an instant, newest first.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        recent.*,
        (
            SELECT count(*)
            FROM operations_usage AS used
            WHERE used.tenant = recent.tenant AND used.account_id = recent.account_id
              AND used.month = recent.month AND used.operation = recent.operation
              AND used.success
        ) AS times,
        ARRAY(
            SELECT hold.hold_id
            FROM credit_holds AS hold
            WHERE hold.tenant = recent.tenant AND hold.account_id = recent.account_id
              AND hold.month = recent.month AND hold.operation = recent.operation
              AND hold.state = 'open'
        ) AS holds
    FROM (
        SELECT tenant, account_id, month, operation
        FROM (
            SELECT tenant, account_id, month, operation, created_at AS at
            FROM operations_usage
            WHERE created_at > instant($1) AND success
            UNION ALL
            SELECT tenant, account_id, month, operation, changed_at
            FROM credit_holds
            WHERE changed_at > instant($1) AND operation IS NOT NULL
        ) AS done
        GROUP BY tenant, account_id, month, operation
        ORDER BY max(at) DESC
        LIMIT $2
    ) AS recent
) AS answer
