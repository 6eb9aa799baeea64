-- The amount of an entry of money in that Redis has not confirmed.
SELECT amount_micros FROM account_inbox WHERE tenant = $1 AND account_id = $2 AND entry_id = $3
