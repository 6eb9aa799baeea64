-- An account's balance in the ledger, and which of the given records of the outbox it contains
-- already: of the entries $3, and of the minutes $5 of the sessions $4. Also the money in that
-- waits for Redis.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        coalesce(account.balance_micros, 0) AS balance_micros,
        ARRAY(
            SELECT entry_id
            FROM credit_ledger
            WHERE tenant = $1 AND account_id = $2 AND entry_id = ANY($3::text[])
        ) AS entry_ids,
        ARRAY(
            SELECT used.session_id || '/' || used.minute
            FROM unnest($4::text[], $5::integer[]) AS asked (session_id, minute)
            JOIN usage_tracking AS used
                ON used.tenant = $1
                AND used.session_id = asked.session_id
                AND used.minute = asked.minute
        ) AS minutes,
        coalesce(
            (
                SELECT json_object_agg(entry_id, amount_micros)
                FROM account_inbox
                WHERE tenant = $1 AND account_id = $2
            ),
            '{}'
        ) AS inbox
    FROM (SELECT) AS always
    LEFT JOIN credit_accounts AS account ON account.tenant = $1 AND account.account_id = $2
) AS answer
