-- Grants: which credits are burnt first, and what is left of them when they expire.

ALTER TABLE credit_accounts
    ADD COLUMN unattributed_micros bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT credit_accounts_unattributed_check CHECK (unattributed_micros >= 0);

-- Every credit that came in, by the entry that brought it, and what became of it. Made by
-- the ledger's trigger alone. What nothing covers is `unattributed_micros` of the account,
-- and the next money in pays it first; so for every account
--     sum(amount - used - expired) - unattributed = balance.
CREATE TABLE credit_grants (
    tenant text NOT NULL,
    account_id text NOT NULL,
    entry_id text NOT NULL,
    position bigint NOT NULL,
    amount_micros bigint NOT NULL,
    used_micros bigint NOT NULL DEFAULT 0,
    expired_micros bigint NOT NULL DEFAULT 0,
    is_exhausted boolean NOT NULL DEFAULT false,
    priority smallint NOT NULL,
    expires_at timestamptz,
    granted_at timestamptz NOT NULL,
    name text,
    CONSTRAINT credit_grants_pkey PRIMARY KEY (tenant, account_id, entry_id),
    CONSTRAINT credit_grants_amounts_check CHECK (
        amount_micros > 0 AND used_micros >= 0 AND expired_micros >= 0
        AND used_micros + expired_micros <= amount_micros
    ),
    CONSTRAINT credit_grants_exhausted_check
        CHECK (is_exhausted = (used_micros + expired_micros = amount_micros))
);

-- In the order in which they burn. Amounts are in no index: what is used of a grant
-- changes with every batch.
CREATE INDEX credit_grants_order
    ON credit_grants (tenant, account_id, priority, expires_at, position)
    WHERE NOT is_exhausted;
CREATE INDEX credit_grants_due ON credit_grants (expires_at)
    WHERE NOT is_exhausted AND expires_at IS NOT NULL;

-- Attributes what is unattributed of the given accounts to their grants: lower priority
-- first, then earlier expiry, then older. The accounts' rows must be locked by the caller.
CREATE FUNCTION cover_usage(p_tenants text[], p_accounts text[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    WITH owing AS (
        SELECT account.tenant, account.account_id, account.unattributed_micros AS owed
        FROM unnest(p_tenants, p_accounts) AS asked (tenant, account_id)
        JOIN credit_accounts AS account USING (tenant, account_id)
        WHERE account.unattributed_micros > 0
    ), queue AS (
        SELECT
            grants.tenant, grants.account_id, grants.entry_id, owing.owed, remaining.micros,
            (sum(remaining.micros) OVER earlier)::bigint - remaining.micros AS before
        FROM owing
        JOIN credit_grants AS grants USING (tenant, account_id)
        CROSS JOIN LATERAL (
            SELECT grants.amount_micros - grants.used_micros - grants.expired_micros AS micros
        ) AS remaining
        WHERE NOT grants.is_exhausted
        WINDOW earlier AS (
            PARTITION BY grants.tenant, grants.account_id
            ORDER BY grants.priority, grants.expires_at NULLS LAST, grants.position
            ROWS UNBOUNDED PRECEDING
        )
    ), taken AS (
        UPDATE credit_grants AS grants SET
            used_micros = grants.used_micros + least(queue.micros, queue.owed - queue.before),
            is_exhausted = queue.micros <= queue.owed - queue.before
        FROM queue
        WHERE queue.before < queue.owed
          AND grants.tenant = queue.tenant
          AND grants.account_id = queue.account_id
          AND grants.entry_id = queue.entry_id
        RETURNING
            grants.tenant, grants.account_id,
            least(queue.micros, queue.owed - queue.before) AS micros
    )
    UPDATE credit_accounts AS account
    SET unattributed_micros = account.unattributed_micros - covered.micros
    FROM (
        SELECT tenant, account_id, sum(micros)::bigint AS micros
        FROM taken
        GROUP BY tenant, account_id
    ) AS covered
    WHERE account.tenant = covered.tenant AND account.account_id = covered.account_id;
END
$$;

-- The balance is the sum of the ledger, always, and every entry is attributed: no entry
-- without its sum, in the same statement. Accounts are taken in the order of their keys,
-- and an account's row guards its grants.
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

-- What the ledger held before there were grants is attributed now.
INSERT INTO credit_grants (
    tenant, account_id, entry_id, position, amount_micros, priority, expires_at, granted_at
)
SELECT
    tenant, account_id, entry_id, position, amount_micros, priority, expires_at, created_at
FROM credit_ledger
WHERE amount_micros > 0;

UPDATE credit_accounts AS account
SET unattributed_micros = used.micros
FROM (
    SELECT tenant, account_id, -sum(amount_micros)::bigint AS micros
    FROM credit_ledger
    WHERE amount_micros < 0
    GROUP BY tenant, account_id
) AS used
WHERE account.tenant = used.tenant AND account.account_id = used.account_id;

SELECT cover_usage(array_agg(tenant), array_agg(account_id)) FROM credit_accounts;
