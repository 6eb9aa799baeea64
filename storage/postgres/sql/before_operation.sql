-- What a charge or a hold needs to know first: the organisation's calendar and tier, and
-- whether the operation was already done under this id ($3).
SELECT row_to_json(answer)::text
FROM (
    SELECT
        coalesce(organization.timezone, 'UTC') AS timezone,
        coalesce(organization.tier, 'free') AS tier,
        coalesce(-entry.amount_micros, used.amount_micros) AS spent_micros,
        coalesce(entry.operation, used.operation) AS spent_operation
    FROM (SELECT) AS always
    LEFT JOIN organizations AS organization ON organization.tenant = $1
    LEFT JOIN credit_ledger AS entry
        ON entry.tenant = $1 AND entry.account_id = $2 AND entry.entry_id = $3
    -- An operation that moved no money is in no ledger.
    LEFT JOIN operations_usage AS used
        ON used.tenant = $1 AND used.account_id = $2 AND used.entry_id = $3
) AS answer
