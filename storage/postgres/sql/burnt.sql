-- Which of the given entries are in the ledger.
SELECT tenant, entry_id
FROM unnest($1::text[], $2::text[], $3::text[]) AS asked (tenant, account_id, entry_id)
JOIN credit_ledger USING (tenant, account_id, entry_id)
