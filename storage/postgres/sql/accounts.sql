-- One page of a tenant's accounts, by id, with the sums of their ledgers.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        account.account_id, account.balance_micros, account.debt_allowed,
        sums.entries, sums.in_micros, sums.burnt_micros, sums.spent_micros
    FROM (
        SELECT account_id, balance_micros, debt_allowed
        FROM credit_accounts
        WHERE tenant = $1 AND ($2::text IS NULL OR account_id > $2)
        ORDER BY account_id
        LIMIT $3
    ) AS account
    CROSS JOIN LATERAL (
        SELECT
            count(*) AS entries,
            coalesce(sum(amount_micros) FILTER (
                WHERE entry_kind IN ('grant', 'adjust', 'expire')
            ), 0) AS in_micros,
            coalesce(-sum(amount_micros) FILTER (WHERE entry_kind = 'burn'), 0)
                AS burnt_micros,
            coalesce(-sum(amount_micros) FILTER (
                WHERE entry_kind IN ('spend', 'hold', 'post', 'void')
            ), 0) AS spent_micros
        FROM credit_ledger AS entry
        WHERE entry.tenant = $1 AND entry.account_id = account.account_id
    ) AS sums
    ORDER BY account.account_id
) AS answer
