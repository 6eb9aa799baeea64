-- The sum of an account's money in: granted, adjusted, expired.
SELECT coalesce(sum(amount_micros), 0)::bigint
FROM credit_ledger
WHERE tenant = $1 AND account_id = $2 AND entry_kind IN ('grant', 'adjust', 'expire')
