-- Deletes entries that Redis has. Locks them in the order of their keys, because several
-- processes sweep.
WITH taken AS (
    SELECT tenant, account_id, entry_id
    FROM account_inbox
    WHERE (tenant, account_id, entry_id) IN (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[])
    )
    ORDER BY tenant, account_id, entry_id
    FOR UPDATE
)
DELETE FROM account_inbox AS waiting
USING taken
WHERE waiting.tenant = taken.tenant
  AND waiting.account_id = taken.account_id
  AND waiting.entry_id = taken.entry_id
