-- Operations: what they used, and the credits that are held for them beforehand.

-- A hold is in exactly one state, and leaves `open` once. The ledger knows only of money
-- that moved: of a hold that was posted, as `post:<hold id>`.
CREATE TABLE credit_holds (
    tenant text NOT NULL,
    hold_id text NOT NULL,
    account_id text NOT NULL,
    state text NOT NULL,
    amount_micros bigint NOT NULL,
    posted_micros bigint NOT NULL DEFAULT 0,
    operation text,
    user_id text,
    month date NOT NULL,
    metadata jsonb,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    changed_at timestamptz NOT NULL,
    CONSTRAINT credit_holds_pkey PRIMARY KEY (tenant, hold_id),
    CONSTRAINT credit_holds_state_check
        CHECK (state IN ('open', 'posted', 'voided', 'expired')),
    CONSTRAINT credit_holds_amount_check CHECK (amount_micros >= 0),
    CONSTRAINT credit_holds_posted_check CHECK (
        posted_micros BETWEEN 0 AND amount_micros AND (state = 'posted' OR posted_micros = 0)
    ),
    CONSTRAINT credit_holds_month_check CHECK (extract(day FROM month) = 1)
);

CREATE INDEX credit_holds_open ON credit_holds (tenant, account_id) WHERE state = 'open';
CREATE INDEX credit_holds_due ON credit_holds (expires_at) WHERE state = 'open';

CREATE FUNCTION refuse_hold_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'a hold that is % stays so', OLD.state USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER refuse_hold_change
    BEFORE UPDATE ON credit_holds
    FOR EACH ROW WHEN (OLD.state <> 'open') EXECUTE FUNCTION refuse_hold_change();

-- One row for each operation that was done, also where it cost nothing or failed. The
-- month is the organisation's, and of an operation that was held for, the hold's.
CREATE TABLE operations_usage (
    tenant text NOT NULL,
    account_id text NOT NULL,
    entry_id text NOT NULL,
    operation text NOT NULL,
    user_id text,
    month date NOT NULL,
    amount_micros bigint NOT NULL,
    success boolean NOT NULL,
    service text,
    tokens_used bigint,
    response_time_ms bigint,
    metadata jsonb,
    created_at timestamptz NOT NULL,
    CONSTRAINT operations_usage_pkey PRIMARY KEY (tenant, account_id, entry_id),
    CONSTRAINT operations_usage_amount_check CHECK (amount_micros >= 0),
    CONSTRAINT operations_usage_month_check CHECK (extract(day FROM month) = 1)
);

CREATE INDEX operations_usage_by_month
    ON operations_usage (tenant, account_id, month, operation);
CREATE INDEX operations_usage_by_time ON operations_usage (tenant, created_at);
