-- What tiers have given an account, by month.
CREATE INDEX credit_grants_allotments ON credit_grants (tenant, account_id)
    WHERE starts_with(name, 'allotment:');

-- What tiers have given an account for a month, together.
CREATE FUNCTION allotted(p_tenant text, p_account text, p_month text) RETURNS bigint
    LANGUAGE sql STABLE
    AS $$
    SELECT coalesce(sum(amount_micros), 0)::bigint
    FROM credit_grants
    WHERE tenant = p_tenant AND account_id = p_account
      AND starts_with(name, 'allotment:') AND right(name, 8) = ':' || p_month
    $$;

-- Gives an account what a tier gives for a month: as much as the month has not given yet,
-- whatever tiers gave it. So an upgrade adds the difference, and a downgrade takes nothing
-- back. The account is locked in between, for two may do this at once. Answers the
-- allotments that Redis has not confirmed.
CREATE FUNCTION post_allotment(
    p_tenant text,
    p_account text,
    p_tier text,
    p_month text,
    p_micros bigint,
    p_at bigint,
    p_priority integer,
    p_expires_at bigint
) RETURNS SETOF account_inbox
    LANGUAGE plpgsql
    AS $$
DECLARE
    given bigint;
    grant_name text := format('allotment:%s:%s', p_tier, p_month);
    grant_id text := grant_name;
BEGIN
    given := allotted(p_tenant, p_account, p_month);
    IF given < p_micros THEN
        PERFORM lock_accounts(ARRAY[p_tenant], ARRAY[p_account]);
        given := allotted(p_tenant, p_account, p_month);
    END IF;
    IF given < p_micros THEN
        PERFORM FROM credit_ledger
        WHERE tenant = p_tenant AND account_id = p_account AND entry_id = grant_id;
        IF FOUND THEN  -- the tier gives more than it gave earlier in the month
            grant_id := format('%s:%s', grant_name, given);
        END IF;
        INSERT INTO credit_ledger (
            tenant, account_id, entry_id, entry_kind, amount_micros, created_at, reason,
            metadata, priority, expires_at
        )
        VALUES (
            p_tenant, p_account, grant_id, 'grant', p_micros - given, instant(p_at),
            format('%s, %s', p_tier, p_month), jsonb_build_object('name', grant_name),
            p_priority, instant(p_expires_at)
        );
        INSERT INTO account_inbox (tenant, account_id, entry_id, amount_micros)
        VALUES (p_tenant, p_account, grant_id, p_micros - given);
    END IF;

    RETURN QUERY
    SELECT * FROM account_inbox AS waiting
    WHERE waiting.tenant = p_tenant AND waiting.account_id = p_account
      AND starts_with(waiting.entry_id, 'allotment:')
    ORDER BY waiting.entry_id;
END
$$;
