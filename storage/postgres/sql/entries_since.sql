-- The newest entries of all ledgers from after an instant, except the cost of minutes.
SELECT row_to_json(answer)::text
FROM (
    SELECT tenant, account_id, entry_id, amount_micros, position
    FROM credit_ledger
    WHERE entry_kind <> 'burn' AND created_at > instant($1) AND amount_micros <> 0
    ORDER BY created_at DESC
    LIMIT $2
) AS answer
