-- Whether an entry still waits for Redis to confirm it.
SELECT EXISTS (
    SELECT FROM account_inbox WHERE tenant = $1 AND account_id = $2 AND entry_id = $3
)
