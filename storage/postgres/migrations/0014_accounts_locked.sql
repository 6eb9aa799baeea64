-- Locks accounts for who is about to write to their ledgers, and makes those that are
-- missing: first those, then all, each in the order of their keys, so that nobody waits in
-- a circle. An entry takes its position under this lock, which it keeps until it commits. So
-- positions of an account follow the order of commits, and whoever sees an entry sees every
-- one before it: the newest position is a watermark.
CREATE FUNCTION lock_accounts(p_tenants text[], p_accounts text[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO credit_accounts (tenant, account_id, balance_micros)
    SELECT DISTINCT tenant, account_id, 0
    FROM unnest(p_tenants, p_accounts) AS asked (tenant, account_id)
    WHERE NOT EXISTS (
        SELECT FROM credit_accounts AS account
        WHERE account.tenant = asked.tenant AND account.account_id = asked.account_id
    )
    ORDER BY tenant, account_id
    ON CONFLICT (tenant, account_id) DO NOTHING;

    PERFORM
    FROM credit_accounts AS account
    WHERE (tenant, account_id) IN (SELECT * FROM unnest(p_tenants, p_accounts))
    ORDER BY tenant, account_id
    FOR NO KEY UPDATE;
END
$$;

-- As before, but it refuses what would make an account too large.
CREATE OR REPLACE FUNCTION update_account_balance() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
DECLARE
    expiry record;
    taken bigint;
BEGIN
    INSERT INTO credit_accounts AS account
        (tenant, account_id, balance_micros, debt_allowed, unattributed_micros)
    SELECT
        tenant, account_id, sum(amount_micros), sum(amount_micros) < 0,
        coalesce(-sum(amount_micros) FILTER (
            WHERE amount_micros < 0
              AND (entry_kind <> 'expire' OR metadata ->> 'grant' IS NULL)
        ), 0)
    FROM new_entries
    GROUP BY tenant, account_id
    ORDER BY tenant, account_id
    ON CONFLICT (tenant, account_id) DO UPDATE SET
        balance_micros = account.balance_micros + excluded.balance_micros,
        debt_allowed = account.balance_micros + excluded.balance_micros < 0,
        unattributed_micros = account.unattributed_micros + excluded.unattributed_micros;

    -- No account grows beyond what is counted exactly. What Redis has decided only takes, and
    -- is never refused.
    PERFORM
    FROM (
        SELECT tenant, account_id
        FROM new_entries
        GROUP BY tenant, account_id
        HAVING sum(amount_micros) > 0
    ) AS grown
    JOIN credit_accounts USING (tenant, account_id)
    WHERE balance_micros > 1000000000000000;
    IF FOUND THEN
        RAISE EXCEPTION 'an account would have more than it may'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'credit_accounts_balance_check';
    END IF;

    INSERT INTO credit_grants (
        tenant, account_id, entry_id, position, amount_micros, priority, expires_at,
        granted_at, name
    )
    SELECT
        tenant, account_id, entry_id, position, amount_micros, priority, expires_at,
        created_at, metadata ->> 'name'
    FROM new_entries
    WHERE amount_micros > 0;

    -- An expiry names its grant. What was used of that since it was decided is taken from
    -- the others: it was used after the grant had expired.
    FOR expiry IN
        SELECT tenant, account_id, metadata ->> 'grant' AS grant_id, -amount_micros AS micros
        FROM new_entries
        WHERE entry_kind = 'expire' AND metadata ->> 'grant' IS NOT NULL
        ORDER BY tenant, account_id, position
    LOOP
        SELECT least(expiry.micros, amount_micros - used_micros - expired_micros) INTO taken
        FROM credit_grants
        WHERE tenant = expiry.tenant AND account_id = expiry.account_id
          AND entry_id = expiry.grant_id;
        taken := coalesce(taken, 0);

        UPDATE credit_grants SET
            expired_micros = expired_micros + taken,
            is_exhausted = used_micros + expired_micros + taken = amount_micros
        WHERE tenant = expiry.tenant AND account_id = expiry.account_id
          AND entry_id = expiry.grant_id;

        UPDATE credit_accounts
        SET unattributed_micros = unattributed_micros + expiry.micros - taken
        WHERE tenant = expiry.tenant AND account_id = expiry.account_id
          AND expiry.micros > taken;
    END LOOP;

    PERFORM cover_usage(array_agg(tenant), array_agg(account_id))
    FROM (SELECT DISTINCT tenant, account_id FROM new_entries) AS touched;

    RETURN NULL;
END
$$;
