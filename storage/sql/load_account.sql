-- An account as Redis is to know it, from one snapshot, which a single statement is.
-- Besides the newest 256 ids of money in, the ids of everything that still waits in the
-- inbox: it is in the balance already and must not be applied again, however old it is.
-- `recorded` is what of the given sessions' time is in that same balance, and open holds
-- are reserved out of it.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        coalesce(account.balance_micros, 0) AS balance_micros,
        coalesce(account.debt_allowed, false) AS debt_allowed,
        held.reserved_micros,
        held.holds,
        ARRAY(
            SELECT entry_id
            FROM (
                SELECT entry_id, position
                FROM (
                    SELECT entry_id, position
                    FROM credit_ledger
                    WHERE tenant = $1 AND account_id = $2
                      AND entry_kind IN ('grant', 'adjust', 'expire')
                    ORDER BY position DESC
                    LIMIT 256
                ) AS newest
                UNION
                SELECT entry.entry_id, entry.position
                FROM account_inbox
                JOIN credit_ledger AS entry USING (tenant, account_id, entry_id)
                WHERE tenant = $1 AND account_id = $2
            ) AS money_in
            ORDER BY position DESC
        ) AS recent_entry_ids,
        coalesce(
            (
                SELECT json_agg(session)
                FROM (
                    SELECT
                        session_id,
                        array_agg(minute ORDER BY minute) AS minutes,
                        sum(charged_micros) AS charged_micros,
                        sum(free_ms) AS free_ms
                    FROM usage_tracking
                    WHERE tenant = $1 AND account_id = $2 AND session_id = ANY($3::text[])
                    GROUP BY session_id
                    ORDER BY session_id
                ) AS session
            ),
            '[]'
        ) AS recorded
    FROM (
        SELECT coalesce(sum(amount_micros), 0) AS reserved_micros, count(*) AS holds
        FROM credit_holds
        WHERE tenant = $1 AND account_id = $2 AND state = 'open'
    ) AS held
    LEFT JOIN credit_accounts AS account ON account.tenant = $1 AND account.account_id = $2
) AS answer
