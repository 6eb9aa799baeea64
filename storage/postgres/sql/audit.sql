-- Everything that does not add up, one row for each finding; no row when everything does. It is
-- one statement, and therefore one snapshot. Records that are still in the outbox cause no
-- finding, because a record arrives with everything that belongs to it. Only a session's minutes
-- may arrive before or after its end.
WITH sums AS (
    SELECT
        tenant, account_id, sum(amount_micros) AS total,
        coalesce(sum(amount_micros) FILTER (WHERE entry_kind = 'grant'), 0) AS granted,
        coalesce(-sum(amount_micros) FILTER (WHERE entry_kind = 'burn'), 0) AS burnt,
        coalesce(-sum(amount_micros) FILTER (
            WHERE entry_kind IN ('spend', 'hold', 'post', 'void')
        ), 0) AS spent,
        coalesce(-sum(amount_micros) FILTER (WHERE entry_kind = 'expire'), 0) AS expired,
        coalesce(sum(amount_micros) FILTER (WHERE entry_kind = 'adjust'), 0) AS adjusted,
        coalesce(sum(amount_micros) FILTER (WHERE amount_micros > 0), 0) AS came_in
    FROM credit_ledger
    GROUP BY tenant, account_id
), lots AS (
    SELECT
        tenant, account_id, sum(amount_micros) AS amount, sum(used_micros) AS used,
        sum(expired_micros) AS expired, bool_or(NOT is_exhausted) AS has_more
    FROM credit_grants
    GROUP BY tenant, account_id
), minutes AS (
    SELECT
        tenant, session_id, count(*) AS minutes, min(minute) AS first, max(minute) AS last,
        sum(charged_micros) AS charged, sum(free_ms) AS free_ms
    FROM usage_tracking
    GROUP BY tenant, session_id
), counted AS (
    SELECT tenant, user_id, month, count(*) AS minutes, sum(seconds) AS seconds
    FROM usage_tracking
    WHERE counts
    GROUP BY tenant, user_id, month
), corrected AS (
    SELECT tenant, user_id, month, sum(minutes) AS minutes
    FROM minute_adjustments
    GROUP BY tenant, user_id, month
)
SELECT row_to_json(finding)::text
FROM (
    SELECT
        'conservation' AS rule, tenant, account_id AS subject,
        format(
            'granted %s - burnt %s - spent %s - expired %s + adjusted %s is not the balance, %s',
            granted, burnt, spent, expired, adjusted, account.balance_micros
        ) AS detail
    FROM sums
    FULL JOIN credit_accounts AS account USING (tenant, account_id)
    WHERE coalesce(granted - burnt - spent - expired + adjusted, 0)
        <> coalesce(account.balance_micros, 0)

    UNION ALL
    SELECT 'debt', tenant, account_id, format('balance %s, flag %s', balance_micros, debt_allowed)
    FROM credit_accounts
    WHERE debt_allowed <> (balance_micros < 0)

    UNION ALL
    SELECT
        'attribution', tenant, account_id,
        format(
            'of %s came in, %s is used and %s expired, %s is not attributed, the balance is %s',
            coalesce(lots.amount, 0), coalesce(lots.used, 0), coalesce(lots.expired, 0),
            account.unattributed_micros, account.balance_micros
        )
    FROM credit_accounts AS account
    LEFT JOIN lots USING (tenant, account_id)
    LEFT JOIN sums USING (tenant, account_id)
    WHERE coalesce(lots.amount, 0) <> coalesce(sums.came_in, 0)
       OR coalesce(lots.amount - lots.used - lots.expired, 0) - account.unattributed_micros
            <> account.balance_micros
       OR (account.unattributed_micros > 0 AND coalesce(lots.has_more, false))

    -- The grant and the entry of an allotment are named after its tier and month. The entry has
    -- a suffix when the tier came to give more. The allotment expires with the month.
    UNION ALL
    SELECT
        'allotment', tenant, account_id,
        format('%s is a %s called %s, expires %s',
            entry_id, entry_kind, metadata ->> 'name', coalesce(expires_at::text, 'never'))
    FROM credit_ledger
    WHERE (
          -- The client chooses the metadata of a charge.
          (entry_kind = 'grant' AND starts_with(metadata ->> 'name', 'allotment:'))
          OR starts_with(entry_id, 'allotment:')
      )
      AND (
          entry_kind <> 'grant' OR expires_at IS NULL
          OR metadata ->> 'name' IS NULL
          OR NOT starts_with(entry_id || ':', (metadata ->> 'name') || ':')
      )

    UNION ALL
    SELECT
        'burn', tenant, session_id || ':' || minute,
        format('charged %s, in the ledger %s', used.charged_micros, entry.micros)
    FROM (SELECT * FROM usage_tracking WHERE charged_micros > 0) AS used
    FULL JOIN (
        -- The minute's own entry, and those that correct it.
        SELECT
            tenant, session_id, minute, -sum(amount_micros) AS micros,
            min(account_id) AS first_account, max(account_id) AS last_account
        FROM credit_ledger
        WHERE entry_kind = 'burn'
        GROUP BY tenant, session_id, minute
    ) AS entry USING (tenant, session_id, minute)
    WHERE coalesce(used.charged_micros, 0) <> coalesce(entry.micros, 0)
       OR (used.account_id, used.account_id) <> (entry.first_account, entry.last_account)

    UNION ALL
    SELECT
        'session', session.tenant, session.session_id,
        format(
            'ended with %s minutes, %s charged; rows %s, numbered %s to %s, %s charged',
            session.minutes, session.charged_micros, coalesce(minutes.minutes, 0),
            minutes.first, minutes.last, coalesce(minutes.charged, 0)
        )
    FROM sessions AS session
    LEFT JOIN minutes USING (tenant, session_id)
    WHERE session.state = 'ended' AND (
        session.minutes <> coalesce(minutes.minutes, 0)
        OR session.charged_micros <> coalesce(minutes.charged, 0)
        OR minutes.first <> 0
        OR minutes.last <> session.minutes - 1
    )

    UNION ALL
    SELECT
        'minutes', tenant, session_id, format('%s rows, numbered %s to %s', minutes, first, last)
    FROM minutes
    WHERE first <> 0 OR last <> minutes - 1

    UNION ALL
    SELECT
        'hold', coalesce(hold.tenant, entry.tenant), coalesce(hold.hold_id, entry.entry_id),
        format(
            'is %s with %s posted, in the ledger %s', coalesce(hold.state, 'unknown'),
            coalesce(hold.posted_micros, 0), -entry.amount_micros
        )
    FROM (SELECT * FROM credit_holds WHERE state = 'posted') AS hold
    FULL JOIN (
        SELECT * FROM credit_ledger WHERE entry_kind = 'post' AND starts_with(entry_id, 'post:')
    ) AS entry
        ON entry.tenant = hold.tenant
        AND entry.account_id = hold.account_id
        AND entry.entry_id = 'post:' || hold.hold_id
    WHERE coalesce(hold.posted_micros, 0) <> coalesce(-entry.amount_micros, 0)

    UNION ALL
    SELECT
        'operation', tenant, entry_id,
        format('%s used, in the ledger %s', used.amount_micros, -entry.amount_micros)
    FROM operations_usage AS used
    LEFT JOIN credit_ledger AS entry USING (tenant, account_id, entry_id)
    WHERE used.amount_micros <> coalesce(-entry.amount_micros, 0)

    UNION ALL
    SELECT
        'month', tenant, user_id || ' ' || to_char(month, 'YYYY-MM'),
        format(
            '%s minutes and %s adjusted, of %s seconds; in the cache %s and %s',
            coalesce(counted.minutes, 0), coalesce(corrected.minutes, 0),
            coalesce(counted.seconds, 0), coalesce(cache.total_minutes, 0),
            coalesce(cache.total_seconds, 0)
        )
    FROM counted
    FULL JOIN corrected USING (tenant, user_id, month)
    FULL JOIN monthly_usage_cache AS cache USING (tenant, user_id, month)
    WHERE coalesce(counted.minutes, 0) + coalesce(corrected.minutes, 0)
            <> coalesce(cache.total_minutes, 0)
       OR coalesce(counted.seconds, 0) <> coalesce(cache.total_seconds, 0)
) AS finding
ORDER BY rule, tenant, subject
LIMIT $1
