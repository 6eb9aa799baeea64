-- Credit accounts and the append-only ledger whose sums they are.

-- Debt. The ledger is the record of what happened, and what happened is never refused:
-- a session that ran on uncovered while Redis was away has burnt its time, even if that
-- takes the balance below zero, and a spend may be here before the void that made room
-- for it. Therefore the trigger on the ledger, which alone writes balances, sets the
-- flag with the balance: debt_allowed is true exactly while the ledger's sum is
-- negative. It follows from the sum, not from the order of arrival, and it goes when the
-- debt is paid. The constraint stands against every other writer. The flag is a
-- statement for whoever shows the account, and no permission to grant or spend below
-- zero: that is decided in Redis, which never does.
CREATE TABLE credit_accounts (
    tenant text NOT NULL,
    account_id text NOT NULL,
    balance_micros bigint NOT NULL,
    debt_allowed boolean NOT NULL DEFAULT false,
    CONSTRAINT credit_accounts_pkey PRIMARY KEY (tenant, account_id),
    CONSTRAINT credit_accounts_debt_check CHECK (balance_micros >= 0 OR debt_allowed)
);

CREATE TABLE credit_ledger (
    tenant text NOT NULL,
    account_id text NOT NULL,
    entry_id text NOT NULL,
    position bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    entry_kind text NOT NULL,
    amount_micros bigint NOT NULL,
    reason text,
    operation text,
    session_id text,
    minute integer,
    priority smallint NOT NULL DEFAULT 0,
    expires_at timestamptz,
    metadata jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT credit_ledger_pkey PRIMARY KEY (tenant, account_id, entry_id),
    CONSTRAINT credit_ledger_kind_check CHECK (
        entry_kind IN ('grant', 'burn', 'spend', 'adjust', 'expire', 'hold', 'post', 'void')
    ),
    CONSTRAINT credit_ledger_sign_check CHECK (
        CASE entry_kind
            WHEN 'grant' THEN amount_micros >= 0
            WHEN 'burn' THEN amount_micros <= 0
            WHEN 'spend' THEN amount_micros <= 0
            WHEN 'expire' THEN amount_micros <= 0
            ELSE true
        END
    ),
    CONSTRAINT credit_ledger_burn_check CHECK (
        entry_kind <> 'burn' OR (session_id IS NOT NULL AND minute IS NOT NULL)
    ),
    CONSTRAINT credit_ledger_priority_check CHECK (priority BETWEEN 0 AND 255)
);

CREATE UNIQUE INDEX credit_ledger_newest ON credit_ledger (tenant, account_id, position DESC);
-- The ids of money in that a cold account is loaded with.
CREATE INDEX credit_ledger_money_in ON credit_ledger (tenant, account_id, position DESC)
    WHERE entry_kind IN ('grant', 'adjust', 'expire');

-- Money in that is written and not yet applied to Redis: written with its ledger entry,
-- deleted when Redis took it. What a dead process left here is applied by the sweep.
CREATE TABLE account_inbox (
    tenant text NOT NULL,
    account_id text NOT NULL,
    entry_id text NOT NULL,
    amount_micros bigint NOT NULL,
    CONSTRAINT account_inbox_pkey PRIMARY KEY (tenant, account_id, entry_id)
);

-- The balance is the sum of the ledger, always: no entry without its sum, in the same
-- statement. Accounts are taken in the order of their keys.
CREATE FUNCTION update_account_balance() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO credit_accounts AS account (tenant, account_id, balance_micros, debt_allowed)
    SELECT tenant, account_id, sum(amount_micros), sum(amount_micros) < 0
    FROM new_entries
    GROUP BY tenant, account_id
    ORDER BY tenant, account_id
    ON CONFLICT (tenant, account_id) DO UPDATE SET
        balance_micros = account.balance_micros + excluded.balance_micros,
        debt_allowed = account.balance_micros + excluded.balance_micros < 0;

    RETURN NULL;
END
$$;

CREATE TRIGGER update_account_balance
    AFTER INSERT ON credit_ledger
    REFERENCING NEW TABLE AS new_entries
    FOR EACH STATEMENT EXECUTE FUNCTION update_account_balance();

CREATE FUNCTION refuse_ledger_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % is refused, a correction is a new entry', TG_OP
        USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER refuse_ledger_change
    BEFORE UPDATE OR DELETE OR TRUNCATE ON credit_ledger
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_ledger_change();
