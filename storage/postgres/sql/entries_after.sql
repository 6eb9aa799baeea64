-- Entries of an account's ledger after a position, except the cost of minutes.
SELECT row_to_json(answer)::text
FROM (
    SELECT tenant, account_id, entry_id, amount_micros, position
    FROM credit_ledger
    WHERE tenant = $1 AND account_id = $2 AND position > $3
      AND entry_kind <> 'burn' AND amount_micros <> 0
    ORDER BY position
) AS answer
