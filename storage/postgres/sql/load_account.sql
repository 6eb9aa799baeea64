-- An account for loading into Redis, from one snapshot, which a single statement is. It has the
-- ids of the newest 256 entries of money in, and of every entry that waits in the inbox. The
-- balance contains all of these already, so they must not be applied again, even if they are
-- old. `recorded` is the time of sessions that the same balance contains: of sessions that have
-- not ended, or that ended after $3 (null: of none). Open holds are reserved out of the balance.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        coalesce(account.balance_micros, 0) AS balance_micros,
        coalesce(account.debt_allowed, false) AS debt_allowed,
        coalesce(
            (SELECT max(position) FROM credit_ledger WHERE tenant = $1 AND account_id = $2), 0
        ) AS position,
        ARRAY(
            SELECT hold_id || '/' || amount_micros
            FROM credit_holds
            WHERE tenant = $1 AND account_id = $2 AND state = 'open'
            ORDER BY hold_id
        ) AS holds,
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
                        count(*) AS minutes,
                        sum(used.charged_micros) AS charged_micros,
                        sum(used.free_ms) AS free_ms
                    FROM sessions AS session
                    JOIN usage_tracking AS used USING (tenant, session_id)
                    WHERE session.tenant = $1
                      AND session.account_id = $2
                      AND (session.ended_at IS NULL OR session.ended_at > instant($3))
                      AND $3::bigint IS NOT NULL
                    GROUP BY session_id
                    ORDER BY session_id
                ) AS session
            ),
            '[]'
        ) AS recorded
    FROM (SELECT) AS always
    LEFT JOIN credit_accounts AS account ON account.tenant = $1 AND account.account_id = $2
) AS answer
