-- What an account's credits were used for, by operation (null: a spend without a name) and by
-- time: in all, and since three instants (of the day, the week and the month). An operation
-- that cost nothing is not in the ledger, but counts as done; one that failed does not count. An
-- entry that corrects a minute's cost (it has a reason) is no action of its own.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        by_time,
        operation,
        count(*) FILTER (WHERE is_action) AS total_actions,
        sum(micros) AS total_micros,
        count(*) FILTER (WHERE is_action AND created_at >= instant($3)) AS day_actions,
        coalesce(sum(micros) FILTER (WHERE created_at >= instant($3)), 0) AS day_micros,
        count(*) FILTER (WHERE is_action AND created_at >= instant($4)) AS week_actions,
        coalesce(sum(micros) FILTER (WHERE created_at >= instant($4)), 0) AS week_micros,
        count(*) FILTER (WHERE is_action AND created_at >= instant($5)) AS month_actions,
        coalesce(sum(micros) FILTER (WHERE created_at >= instant($5)), 0) AS month_micros
    FROM (
        SELECT
            entry_kind = 'burn' AS by_time, operation, -amount_micros AS micros, created_at,
            entry_kind <> 'burn' OR reason IS NULL AS is_action
        FROM credit_ledger
        WHERE tenant = $1 AND account_id = $2 AND entry_kind IN ('burn', 'spend', 'post')
        UNION ALL
        SELECT false, operation, 0, created_at, true
        FROM operations_usage
        WHERE tenant = $1 AND account_id = $2 AND amount_micros = 0 AND success
    ) AS done
    GROUP BY by_time, operation
    ORDER BY by_time, operation
) AS answer
