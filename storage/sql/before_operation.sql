-- What is to be known before an operation is charged or held for: the organisation's
-- calendar and tier, and whether it was done already, under this id ($3).
SELECT row_to_json(answer)::text
FROM (
    SELECT
        coalesce(organization.timezone, 'UTC') AS timezone,
        coalesce(organization.tier, 'free') AS tier,
        coalesce(
            (
                SELECT -entry.amount_micros
                FROM credit_ledger AS entry
                WHERE entry.tenant = $1 AND entry.account_id = $2 AND entry.entry_id = $3
            ),
            (
                SELECT used.amount_micros
                FROM operations_usage AS used
                WHERE used.tenant = $1 AND used.account_id = $2 AND used.entry_id = $3
            )
        ) AS spent_micros
    FROM (SELECT) AS always
    LEFT JOIN organizations AS organization ON organization.tenant = $1
) AS answer
