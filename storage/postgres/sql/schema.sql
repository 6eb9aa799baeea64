-- The whole schema of the record, for reading from top to bottom.
--
-- Only storage/postgres/migrations/*.sql make databases. tests/storage/test_migrate.py
-- compares the two catalogues, comments in function bodies included, and fails when they differ.
--
-- Every primary key of a tenant's own rows begins with the tenant ('org:<org id>', or
-- 'user:<user id>' for a user without an organisation), so that the tables can be distributed by
-- the tenant. The tables about calls are the installation's.
-- There are no foreign keys, because records arrive in any order: a minute may arrive
-- before its session. Credits are micro-credits, durations milliseconds, unless the name
-- says otherwise.

-- Helpers ---------------------------------------------------------------------------

CREATE FUNCTION instant(p_ms bigint) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ SELECT to_timestamp(p_ms / 1000.0) $$;

CREATE FUNCTION epoch_ms(p_at timestamptz) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ SELECT floor(extract(epoch FROM p_at) * 1000)::bigint $$;

CREATE FUNCTION tenant_of(p_user text, p_org text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT coalesce('org:' || p_org, 'user:' || p_user) $$;

-- A plan's limit in minutes. Plans have hours; usage is counted in minutes. The hours are
-- rounded to the nearest minute, so that ten minutes stay ten with any number of decimals of
-- 10/60. Exactly half a minute is rounded down: the limit is always less than half a minute
-- above the plan.
CREATE FUNCTION limit_minutes(p_hours numeric) RETURNS integer
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ SELECT ceil(p_hours * 60 - 0.5)::integer $$;

-- Organisations and their members ---------------------------------------------------

-- The order of the changes of plans and limits. A change takes its number before it is written, and
-- each value keeps the number of the change that set it. So a change that comes late, or is written
-- again because its answer was lost, does not undo a newer one.
CREATE SEQUENCE plan_changes;

CREATE TABLE organizations (
    tenant text NOT NULL,
    org_id text NOT NULL,
    tier text NOT NULL DEFAULT 'free',
    timezone text NOT NULL DEFAULT 'UTC',
    monthly_hours_limit numeric,
    allow_overage boolean NOT NULL DEFAULT false,
    changed_at timestamptz,
    tier_change bigint NOT NULL DEFAULT 0,
    timezone_change bigint NOT NULL DEFAULT 0,
    limit_change bigint NOT NULL DEFAULT 0,
    overage_change bigint NOT NULL DEFAULT 0,
    CONSTRAINT organizations_pkey PRIMARY KEY (tenant),
    -- The bound keeps the limit in minutes within an integer, and NaN out.
    CONSTRAINT organizations_limit_check CHECK (monthly_hours_limit BETWEEN 0 AND 1000000),
    -- Raises for a zone that PostgreSQL does not know, so that no query fails because of it.
    CONSTRAINT organizations_timezone_check
        CHECK (timestamptz 'epoch' AT TIME ZONE timezone IS NOT NULL)
);

CREATE TABLE organization_members (
    tenant text NOT NULL,
    user_id text NOT NULL,
    monthly_hours_limit numeric,
    current_month_minutes_used integer NOT NULL DEFAULT 0,
    current_month_start date,
    changed_at timestamptz,
    limit_change bigint NOT NULL DEFAULT 0,
    CONSTRAINT organization_members_pkey PRIMARY KEY (tenant, user_id),
    CONSTRAINT organization_members_limit_check
        CHECK (monthly_hours_limit BETWEEN 0 AND 1000000)
);

-- For finding recent changes of limits: after a loss Redis may have the older limits.
CREATE INDEX organizations_recent ON organizations (changed_at);
CREATE INDEX organization_members_recent ON organization_members (changed_at);

-- Sessions: one row for each chat, recording or call --------------------------------

CREATE TABLE sessions (
    tenant text NOT NULL,
    session_id text NOT NULL,
    state text NOT NULL,
    kind text NOT NULL,
    user_id text NOT NULL,
    org_id text,
    account_id text NOT NULL,
    counterpart_id text,
    started_at timestamptz,
    ended_at timestamptz,
    reason text,
    limit_name text,
    elapsed_ms bigint NOT NULL DEFAULT 0,
    free_ms bigint NOT NULL DEFAULT 0,
    billed_ms bigint NOT NULL DEFAULT 0,
    minutes integer NOT NULL DEFAULT 0,
    charged_micros bigint NOT NULL DEFAULT 0,
    uncovered_ms bigint NOT NULL DEFAULT 0,
    segments jsonb NOT NULL DEFAULT '[]',
    gaps jsonb NOT NULL DEFAULT '[]',
    terms jsonb NOT NULL,
    metadata jsonb,
    is_reported boolean NOT NULL DEFAULT false,
    expires_at timestamptz,
    CONSTRAINT sessions_pkey PRIMARY KEY (tenant, session_id),
    CONSTRAINT sessions_state_check CHECK (state IN ('prepared', 'live', 'ended')),
    CONSTRAINT sessions_started_check CHECK (state = 'prepared' OR started_at IS NOT NULL),
    CONSTRAINT sessions_ended_check
        CHECK ((state = 'ended') = (ended_at IS NOT NULL AND reason IS NOT NULL)),
    CONSTRAINT sessions_prepared_check CHECK (state <> 'prepared' OR expires_at IS NOT NULL),
    CONSTRAINT sessions_figures_check CHECK (
        elapsed_ms >= 0 AND free_ms >= 0 AND billed_ms >= 0
        AND minutes >= 0 AND charged_micros >= 0 AND uncovered_ms >= 0
    )
);

-- For pages of sessions, newest first: of a user, of a counterpart, of a kind, of a tenant.
CREATE INDEX sessions_newest_of_user ON sessions (tenant, user_id, started_at, session_id);
CREATE INDEX sessions_newest_of_counterpart
    ON sessions (tenant, counterpart_id, started_at, session_id)
    WHERE counterpart_id IS NOT NULL;
CREATE INDEX sessions_newest_of_kind ON sessions (tenant, kind, started_at, session_id);
CREATE INDEX sessions_newest ON sessions (tenant, started_at, session_id);
-- For loading an account, and for finding sessions that no process runs: both need sessions
-- that have not ended or have just ended, without a scan of all sessions.
CREATE INDEX sessions_by_account ON sessions (tenant, account_id, ended_at);
CREATE INDEX sessions_live ON sessions (tenant, session_id) WHERE state = 'live';
CREATE INDEX sessions_reported ON sessions (tenant, session_id)
    WHERE state = 'live' AND is_reported;

-- Minutes: one row for each session and minute --------------------------------------

CREATE TABLE usage_tracking (
    tenant text NOT NULL,
    session_id text NOT NULL,
    minute integer NOT NULL,
    seconds smallint NOT NULL,
    user_id text NOT NULL,
    org_id text,
    account_id text NOT NULL,
    counterpart_id text,
    kind text NOT NULL,
    started_at timestamptz NOT NULL,
    month date NOT NULL,
    counts boolean NOT NULL,
    charged_micros bigint NOT NULL,
    free_ms bigint NOT NULL,
    CONSTRAINT usage_tracking_pkey PRIMARY KEY (tenant, session_id, minute),
    CONSTRAINT usage_tracking_minute_check CHECK (minute >= 0),
    CONSTRAINT usage_tracking_seconds_check CHECK (seconds BETWEEN 1 AND 60),
    CONSTRAINT usage_tracking_month_check CHECK (extract(day FROM month) = 1),
    CONSTRAINT usage_tracking_charged_check CHECK (charged_micros >= 0),
    CONSTRAINT usage_tracking_free_check CHECK (free_ms >= 0)
);

CREATE INDEX usage_tracking_by_user ON usage_tracking (tenant, user_id, started_at);
CREATE INDEX usage_tracking_by_time ON usage_tracking (tenant, started_at);
-- For the free time that is left to a user and counterpart, or to a user and day.
CREATE INDEX usage_tracking_free ON usage_tracking (tenant, user_id, kind, counterpart_id)
    WHERE free_ms > 0;

-- The minutes that count in a user's month, with or without an organisation. The sum over a
-- tenant and month is the organisation's month.
CREATE TABLE monthly_usage_cache (
    tenant text NOT NULL,
    user_id text NOT NULL,
    month date NOT NULL,
    org_id text,
    total_minutes integer NOT NULL,
    total_seconds bigint NOT NULL,
    -- Minutes beyond the limit of an organisation that allows overage, by the limit at the
    -- time when they were recorded. They may be billed separately.
    overage_minutes integer NOT NULL DEFAULT 0,
    CONSTRAINT monthly_usage_cache_pkey PRIMARY KEY (tenant, user_id, month),
    CONSTRAINT monthly_usage_cache_totals_check
        CHECK (total_minutes >= 0 AND total_seconds >= 0),
    CONSTRAINT monthly_usage_cache_overage_check
        CHECK (overage_minutes BETWEEN 0 AND total_minutes)
);

CREATE INDEX monthly_usage_cache_by_month ON monthly_usage_cache (tenant, month);

-- Adds new minutes to the months. It runs once for each statement, over all rows that are
-- new: one update for each member and batch. It locks rows in the order of their keys, first
-- organisations, then members, then the cache, so that two flushers cannot deadlock.
CREATE FUNCTION update_member_usage() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    -- What is beyond the limit depends on the minutes of all members: one at a time.
    PERFORM
    FROM organizations
    WHERE allow_overage
      AND monthly_hours_limit IS NOT NULL
      AND tenant IN (SELECT tenant FROM new_minutes WHERE counts)
    ORDER BY tenant
    FOR UPDATE;

    -- The newest month of the batch is the only one that can be the member's current
    -- month. A newer month than the member's begins it anew; a late minute of an older
    -- month leaves it alone. A member without a row gets one, without a limit.
    INSERT INTO organization_members AS member
        (tenant, user_id, current_month_minutes_used, current_month_start)
    SELECT newest.tenant, newest.user_id, newest.minutes, newest.month
    FROM (
        SELECT DISTINCT ON (tenant, user_id) tenant, user_id, month, count(*)::integer AS minutes
        FROM new_minutes
        WHERE counts AND org_id IS NOT NULL
        GROUP BY tenant, user_id, month
        ORDER BY tenant, user_id, month DESC
    ) AS newest
    ORDER BY newest.tenant, newest.user_id
    ON CONFLICT (tenant, user_id) DO UPDATE SET
        current_month_minutes_used = excluded.current_month_minutes_used
            + CASE WHEN member.current_month_start = excluded.current_month_start
                   THEN member.current_month_minutes_used ELSE 0 END,
        current_month_start = excluded.current_month_start
    WHERE member.current_month_start IS NULL
       OR member.current_month_start <= excluded.current_month_start;

    WITH room AS (
        -- What is left below the limit, where the limit does not stop.
        SELECT
            batch.tenant, batch.month,
            limit_minutes(organization.monthly_hours_limit) - coalesce((
                SELECT sum(used.total_minutes)
                FROM monthly_usage_cache AS used
                WHERE used.tenant = batch.tenant AND used.month = batch.month
            ), 0) AS minutes
        FROM (SELECT DISTINCT tenant, month FROM new_minutes WHERE counts) AS batch
        JOIN organizations AS organization USING (tenant)
        WHERE organization.allow_overage AND organization.monthly_hours_limit IS NOT NULL
    ), numbered AS (
        SELECT
            tenant, user_id, month, org_id, seconds,
            row_number() OVER (
                PARTITION BY tenant, month ORDER BY started_at, session_id, minute
            ) AS number
        FROM new_minutes
        WHERE counts
    )
    INSERT INTO monthly_usage_cache AS cache (
        tenant, user_id, month, org_id, total_minutes, total_seconds, overage_minutes
    )
    SELECT
        tenant, user_id, month, max(org_id), count(*), sum(seconds),
        count(*) FILTER (WHERE numbered.number > room.minutes)
    FROM numbered
    LEFT JOIN room USING (tenant, month)
    GROUP BY tenant, user_id, month
    ORDER BY tenant, user_id, month
    ON CONFLICT (tenant, user_id, month) DO UPDATE SET
        total_minutes = cache.total_minutes + excluded.total_minutes,
        total_seconds = cache.total_seconds + excluded.total_seconds,
        overage_minutes = cache.overage_minutes + excluded.overage_minutes;

    RETURN NULL;
END
$$;

CREATE TRIGGER update_member_usage
    AFTER INSERT ON usage_tracking
    REFERENCING NEW TABLE AS new_minutes
    FOR EACH STATEMENT EXECUTE FUNCTION update_member_usage();

-- Corrections of minutes. Each is a new entry; the corrected minutes are never edited.
-- `is_applied` means that Redis has the adjustment. The sweep applies adjustments that a dead
-- process has left.
CREATE TABLE minute_adjustments (
    tenant text NOT NULL,
    user_id text NOT NULL,
    entry_id text NOT NULL,
    month date NOT NULL,
    minutes integer NOT NULL,
    reason text NOT NULL,
    is_applied boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL,
    CONSTRAINT minute_adjustments_pkey PRIMARY KEY (tenant, user_id, entry_id),
    CONSTRAINT minute_adjustments_month_check CHECK (extract(day FROM month) = 1)
);

CREATE INDEX minute_adjustments_by_month ON minute_adjustments (tenant, user_id, month);
CREATE INDEX minute_adjustments_waiting ON minute_adjustments (tenant, created_at)
    WHERE NOT is_applied;
-- For adjustments that were made while a month was being loaded into Redis.
CREATE INDEX minute_adjustments_recent ON minute_adjustments (tenant, created_at);
CREATE INDEX minute_adjustments_newest ON minute_adjustments (created_at);

-- Moves a member's month by a correction. The overage changes by as much as the correction moves
-- the organisation's month over its limit. The constraint on the totals refuses to take away
-- more minutes than there are.
CREATE FUNCTION move_month(
    p_tenant text, p_user text, p_month date, p_minutes integer, p_seconds bigint
) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    minutes_limit integer;
    used bigint;
    beyond integer := 0;
BEGIN
    SELECT limit_minutes(monthly_hours_limit) INTO minutes_limit
    FROM organizations
    WHERE tenant = p_tenant AND allow_overage
    FOR UPDATE;

    IF p_tenant LIKE 'org:%' THEN
        INSERT INTO organization_members (tenant, user_id)
        VALUES (p_tenant, p_user)
        ON CONFLICT (tenant, user_id) DO NOTHING;

        UPDATE organization_members AS member SET
            current_month_minutes_used = greatest(0, p_minutes
                + CASE WHEN current_month_start = p_month
                       THEN current_month_minutes_used ELSE 0 END),
            current_month_start = p_month
        WHERE tenant = p_tenant AND user_id = p_user
          AND (current_month_start IS NULL OR current_month_start <= p_month);
    END IF;

    IF minutes_limit IS NOT NULL THEN
        SELECT coalesce(sum(total_minutes), 0) INTO used
        FROM monthly_usage_cache
        WHERE tenant = p_tenant AND month = p_month;
        beyond := greatest(0, used + p_minutes - minutes_limit)
            - greatest(0, used - minutes_limit);
    END IF;

    INSERT INTO monthly_usage_cache (
        tenant, user_id, month, org_id, total_minutes, total_seconds
    )
    VALUES (
        p_tenant, p_user, p_month, substring(p_tenant FROM '^org:(.*)$'), 0, 0
    )
    ON CONFLICT (tenant, user_id, month) DO NOTHING;

    UPDATE monthly_usage_cache SET
        total_minutes = total_minutes + p_minutes,
        total_seconds = total_seconds + p_seconds,
        overage_minutes = least(
            greatest(overage_minutes + beyond, 0), greatest(total_minutes + p_minutes, 0)
        )
    WHERE tenant = p_tenant AND user_id = p_user AND month = p_month;
END
$$;

-- Applies an adjustment to the month. Seconds stay, because they are what was measured.
CREATE FUNCTION apply_minute_adjustment() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM move_month(NEW.tenant, NEW.user_id, NEW.month, NEW.minutes, 0);
    RETURN NULL;
END
$$;

CREATE TRIGGER apply_minute_adjustment
    AFTER INSERT ON minute_adjustments
    FOR EACH ROW EXECUTE FUNCTION apply_minute_adjustment();

-- Whether a user may record at an instant, and the limit that decides this. Of the limits
-- of the member and of the organisation, the one with fewer minutes left decides. The month
-- is the calendar month in the organisation's time zone. The limit of an organisation that
-- allows overage is shown and stops no session; the limit that the organisation has set for
-- a member stops the member nevertheless. Without a limit the answer has nulls, and 0 per
-- cent. Without a row there is no limit, and the time zone is UTC.
CREATE FUNCTION check_usage_limit(
    p_user text,
    p_org text,
    p_at timestamptz DEFAULT now(),
    OUT can_record boolean,
    OUT minutes_used integer,
    OUT minutes_limit integer,
    OUT minutes_remaining integer,
    OUT percentage_used numeric,
    OUT binding text
)
    LANGUAGE sql STABLE
    AS $$
    WITH organization AS (
        SELECT
            tenant_of(p_user, p_org) AS tenant,
            limit_minutes(found.monthly_hours_limit) AS minutes_limit,
            coalesce(found.allow_overage, false) AS allow_overage,
            date_trunc('month', p_at AT TIME ZONE coalesce(found.timezone, 'UTC'))::date AS month
        FROM (SELECT) AS always
        LEFT JOIN organizations AS found ON found.tenant = tenant_of(p_user, p_org)
    ), used AS (
        SELECT
            coalesce(sum(cache.total_minutes) FILTER (WHERE cache.user_id = p_user), 0)::integer
                AS member_minutes,
            coalesce(sum(cache.total_minutes), 0)::integer AS org_minutes
        FROM organization
        JOIN monthly_usage_cache AS cache USING (tenant, month)
    ), candidates AS (
        SELECT 1 AS rank, 'member_minutes' AS name, used.member_minutes AS used,
            limit_minutes(member.monthly_hours_limit) AS minutes_limit, true AS stops
        FROM used, organization
        JOIN organization_members AS member
            ON member.tenant = organization.tenant AND member.user_id = p_user
        WHERE member.monthly_hours_limit IS NOT NULL
        UNION ALL
        SELECT 2, 'org_minutes', used.org_minutes, organization.minutes_limit,
            NOT organization.allow_overage
        FROM used, organization
        WHERE organization.minutes_limit IS NOT NULL
        UNION ALL
        SELECT 3, NULL, used.member_minutes, NULL, false
        FROM used
    )
    SELECT
        NOT stops OR used < minutes_limit,
        used,
        minutes_limit,
        CASE WHEN minutes_limit IS NOT NULL THEN greatest(minutes_limit - used, 0) END,
        CASE
            WHEN minutes_limit IS NULL THEN 0
            WHEN minutes_limit = 0 THEN 100
            ELSE round(used * 100.0 / minutes_limit, 2)
        END,
        CASE WHEN stops THEN name END
    FROM candidates
    ORDER BY stops DESC, minutes_limit - used NULLS LAST, rank
    LIMIT 1
$$;

-- Usage by day, in the organisation's time zone, from p_from up to the day before p_to.
-- Minutes and seconds are of the kinds that count, so that days add up to
-- monthly_usage_cache; sessions and credits are of every kind. Days without usage are
-- left out. A null user means all members of the organisation.
CREATE FUNCTION get_usage_details(p_user text, p_org text, p_from date, p_to date)
    RETURNS TABLE (
        day date, minutes integer, seconds bigint, sessions integer, credits_micros bigint
    )
    LANGUAGE sql STABLE
    AS $$
    WITH organization AS (
        SELECT
            tenant_of(p_user, p_org) AS tenant,
            coalesce(found.timezone, 'UTC') AS timezone
        FROM (SELECT) AS always
        LEFT JOIN organizations AS found ON found.tenant = tenant_of(p_user, p_org)
    )
    SELECT
        (used.started_at AT TIME ZONE organization.timezone)::date AS day,
        (count(*) FILTER (WHERE used.counts))::integer,
        coalesce(sum(used.seconds) FILTER (WHERE used.counts), 0)::bigint,
        count(DISTINCT used.session_id)::integer,
        sum(used.charged_micros)::bigint
    FROM organization
    JOIN usage_tracking AS used
        ON used.tenant = organization.tenant
        AND used.started_at >= p_from::timestamp AT TIME ZONE organization.timezone
        AND used.started_at < p_to::timestamp AT TIME ZONE organization.timezone
    WHERE p_user IS NULL OR used.user_id = p_user
    GROUP BY day
    ORDER BY day
$$;

-- Credits ---------------------------------------------------------------------------

-- A balance may be negative: debt. The ledger records what happened, and refuses none of it.
-- A session that ran on uncovered while Redis was away has burnt its time, even if that takes
-- the balance below zero. A spend may arrive before the void that made room for it. Only the
-- trigger on the ledger writes balances. It sets debt_allowed together with the balance:
-- debt_allowed is true exactly while the ledger's sum is negative. So the flag follows from
-- the sum and not from the order of arrival, and is cleared when the debt is paid. The
-- constraint refuses a negative balance from every other writer. The flag only informs those
-- who show the account. It permits no grant and no spend below zero: Redis decides these, and
-- never allows them.
CREATE TABLE credit_accounts (
    tenant text NOT NULL,
    account_id text NOT NULL,
    balance_micros bigint NOT NULL,
    debt_allowed boolean NOT NULL DEFAULT false,
    unattributed_micros bigint NOT NULL DEFAULT 0,
    CONSTRAINT credit_accounts_pkey PRIMARY KEY (tenant, account_id),
    CONSTRAINT credit_accounts_debt_check CHECK (balance_micros >= 0 OR debt_allowed),
    CONSTRAINT credit_accounts_unattributed_check CHECK (unattributed_micros >= 0)
);

-- Locks accounts before the caller writes to their ledgers, and makes missing accounts. It
-- makes the missing ones first and then locks all, each in the order of keys, so that callers
-- cannot deadlock. An entry takes its position under this lock, and the lock lasts until the
-- commit. So the positions of an account follow the order of commits, and a reader who sees an
-- entry sees every entry before it: the newest position is a watermark.
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
            -- A reason: an end has corrected a minute (storage/postgres/session_records.py).
            WHEN 'burn' THEN amount_micros <= 0 OR reason IS NOT NULL
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
-- For the ids of money in that an account is loaded with.
CREATE INDEX credit_ledger_money_in ON credit_ledger (tenant, account_id, position DESC)
    WHERE entry_kind IN ('grant', 'adjust', 'expire');

-- For entries that Redis may lack after it lost its last writes.
CREATE INDEX credit_ledger_recent ON credit_ledger (created_at) WHERE entry_kind <> 'burn';

-- Money in that is recorded and not yet applied to Redis. A row is written with its ledger
-- entry, and deleted when Redis has the entry. The sweep applies rows that a dead process has
-- left.
CREATE TABLE account_inbox (
    tenant text NOT NULL,
    account_id text NOT NULL,
    entry_id text NOT NULL,
    amount_micros bigint NOT NULL,
    CONSTRAINT account_inbox_pkey PRIMARY KEY (tenant, account_id, entry_id)
);

-- Money in by the entry that brought it, and how much of it is used or expired. Only the
-- ledger's trigger writes this table. Usage that no grant covers is `unattributed_micros` of
-- the account, and the next money in pays it first. So for every account
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

-- Grants in the order in which they burn. No index contains amounts, because what is used of
-- a grant changes with every batch.
CREATE INDEX credit_grants_order
    ON credit_grants (tenant, account_id, priority, expires_at, position)
    WHERE NOT is_exhausted;
CREATE INDEX credit_grants_due ON credit_grants (expires_at)
    WHERE NOT is_exhausted AND expires_at IS NOT NULL;
-- For the allotments that tiers have given an account.
CREATE INDEX credit_grants_allotments ON credit_grants (tenant, account_id)
    WHERE starts_with(name, 'allotment:');

-- Attributes the unattributed usage of the given accounts to their grants: lower priority
-- first, then earlier expiry, then older. The caller must have locked the accounts' rows.
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

-- Keeps the balance equal to the sum of the ledger, and attributes every entry, in the same
-- statement that writes the entry. It locks accounts in the order of their keys, and an
-- account's row guards its grants.
CREATE FUNCTION update_account_balance() RETURNS trigger
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

-- The sum of what tiers have given an account for a month.
CREATE FUNCTION allotted(p_tenant text, p_account text, p_month text) RETURNS bigint
    LANGUAGE sql STABLE
    AS $$
    SELECT coalesce(sum(amount_micros), 0)::bigint
    FROM credit_grants
    WHERE tenant = p_tenant AND account_id = p_account
      AND starts_with(name, 'allotment:') AND right(name, 8) = ':' || p_month
    $$;

-- Gives an account the allotment of a tier for a month, less what tiers have already given for
-- that month. So an upgrade adds the difference, and a downgrade takes nothing back. The
-- function locks the account and looks again, because two callers may run at once. It answers
-- the allotments that Redis has not confirmed.
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

-- Operations ------------------------------------------------------------------------

-- Holds. A hold is in exactly one state, and leaves `open` once. The ledger has only money
-- that moved: for a posted hold the entry `post:<hold id>`.
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
-- Hold ids are unique, so a backend that posts or voids a hold need not name the tenant.
CREATE INDEX credit_holds_by_id ON credit_holds (hold_id);
CREATE INDEX credit_holds_recent ON credit_holds (changed_at);

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

-- One row for each operation that was done, also where it cost nothing or failed. The month
-- is that of the organisation's calendar; for an operation with a hold, the hold's month.
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
CREATE INDEX operations_usage_recent ON operations_usage (created_at);

-- Idempotency -----------------------------------------------------------------------

CREATE TABLE idempotency_keys (
    tenant text NOT NULL,
    scope text NOT NULL,
    key text NOT NULL,
    fingerprint text NOT NULL,
    status smallint,
    response bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (tenant, scope, key),
    CONSTRAINT idempotency_keys_answer_check
        CHECK ((status IS NULL) = (response IS NULL))
);

CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

-- Calls -----------------------------------------------------------------------------

-- What call providers say about calls. The keys of these tables begin with the provider: a fact
-- arrives before it is known whose call it is, so these tables are the installation's.

-- The inbox: one row for each fact. A row is written before the provider gets its answer, and is
-- applied afterwards. A process that applies a row has until `due_at`; then any process may take
-- the row over. `body` is the provider's signed body, with the first fact that was made of it. A
-- parked row waits for a plan, or has failed each time, with `error`.
CREATE TABLE call_facts (
    provider text NOT NULL,
    fact_key text NOT NULL,
    position bigint GENERATED ALWAYS AS IDENTITY,
    call_id text NOT NULL,
    call_session text NOT NULL,
    participant text,
    fact jsonb NOT NULL,
    body bytea,
    state text NOT NULL DEFAULT 'waiting',
    attempts integer NOT NULL DEFAULT 0,
    received_at timestamptz NOT NULL,
    due_at timestamptz NOT NULL,
    applied_at timestamptz,
    error text,
    CONSTRAINT call_facts_pkey PRIMARY KEY (provider, fact_key),
    CONSTRAINT call_facts_state_check CHECK (state IN ('waiting', 'parked', 'applied')),
    CONSTRAINT call_facts_applied_check CHECK ((state = 'applied') = (applied_at IS NOT NULL)),
    CONSTRAINT call_facts_error_check CHECK (error IS NULL OR state = 'parked')
);

CREATE INDEX call_facts_of_session ON call_facts (provider, call_session, position);
CREATE INDEX call_facts_due ON call_facts (due_at) WHERE state = 'waiting';
CREATE INDEX call_facts_parked ON call_facts (provider, call_id) WHERE state = 'parked';
CREATE INDEX call_facts_failed ON call_facts (provider, call_session, position)
    WHERE error IS NOT NULL;
-- For deletion by age, and for replays.
CREATE INDEX call_facts_by_age ON call_facts (received_at);

-- Whose call it is, as a backend said. `version` rises with each change.
CREATE TABLE calls (
    provider text NOT NULL,
    call_id text NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    plan jsonb NOT NULL,
    changed_at timestamptz NOT NULL,
    CONSTRAINT calls_pkey PRIMARY KEY (provider, call_id)
);

-- For calls of an id that a request names without a provider.
CREATE INDEX calls_by_id ON calls (call_id);

-- The runs of calls. `seen_at` is when the first fact of a run came in, and never changes;
-- `ended_fact` is kept for participants who become known after the end. A run is swept at
-- `sweep_at`, and no more when that is null.
CREATE TABLE call_sessions (
    provider text NOT NULL,
    call_session text NOT NULL,
    call_id text NOT NULL,
    rest_name text NOT NULL DEFAULT '',
    custom jsonb NOT NULL DEFAULT '{}',
    seen_at timestamptz NOT NULL,
    started_at timestamptz,
    ended_at timestamptz,
    ended_fact jsonb,
    is_parked boolean NOT NULL DEFAULT false,
    sweep_at timestamptz,
    sweep_failures integer NOT NULL DEFAULT 0,
    swept_at timestamptz,
    CONSTRAINT call_sessions_pkey PRIMARY KEY (provider, call_session),
    CONSTRAINT call_sessions_ended_check CHECK ((ended_at IS NULL) = (ended_fact IS NULL))
);

CREATE INDEX call_sessions_of_call ON call_sessions (call_id, seen_at);
CREATE INDEX call_sessions_due ON call_sessions (sweep_at) WHERE sweep_at IS NOT NULL;
-- For pages of calls, newest first: of all states, and of each.
CREATE INDEX call_sessions_newest ON call_sessions (seen_at, provider, call_session);
CREATE INDEX call_sessions_parked ON call_sessions (seen_at, provider, call_session)
    WHERE is_parked;
CREATE INDEX call_sessions_active ON call_sessions (seen_at, provider, call_session)
    WHERE NOT is_parked AND ended_at IS NULL;
CREATE INDEX call_sessions_ended ON call_sessions (seen_at, provider, call_session)
    WHERE NOT is_parked AND ended_at IS NOT NULL;

-- Who is in a run, by the provider's name. A participant who is mapped keeps the mapping: a
-- session does not change its payer. `seen_at` is that of the run.
CREATE TABLE call_participants (
    provider text NOT NULL,
    call_session text NOT NULL,
    participant text NOT NULL,
    call_id text NOT NULL,
    seen_at timestamptz NOT NULL,
    parked_because text,
    tenant text,
    session_id text,
    user_id text,
    org_id text,
    mapping jsonb,
    CONSTRAINT call_participants_pkey PRIMARY KEY (provider, call_session, participant),
    CONSTRAINT call_participants_mapped_check CHECK (
        (parked_because IS NULL)
        = (tenant IS NOT NULL AND session_id IS NOT NULL AND user_id IS NOT NULL
           AND mapping IS NOT NULL)
    )
);

-- For the calls of a user, newest first.
CREATE INDEX call_participants_of_user
    ON call_participants (user_id, seen_at, provider, call_session)
    WHERE user_id IS NOT NULL;

-- Both clocks of a call's session, and the entries that bring its charge to the provider's. The
-- session's own figures and minutes stay as our clock had them. A correction is noted here before
-- it is made, so that a process that dies in between leaves it to another: `is_done` says whether
-- it was made.
CREATE TABLE provider_durations (
    tenant text NOT NULL,
    session_id text NOT NULL,
    provider text NOT NULL,
    call_id text NOT NULL,
    call_session text NOT NULL,
    user_id text NOT NULL,
    account_id text NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL,
    elapsed_ms bigint NOT NULL,
    facts_ms bigint NOT NULL,
    provider_ms bigint,
    asked_ms bigint,
    reason text NOT NULL,
    uncollected_ms bigint NOT NULL DEFAULT 0,
    uncollected_micros bigint NOT NULL DEFAULT 0,
    uncollected_minutes integer NOT NULL DEFAULT 0,
    stretches jsonb NOT NULL,
    corrections jsonb NOT NULL DEFAULT '[]',
    version integer NOT NULL DEFAULT 1,
    settled_at timestamptz NOT NULL,
    CONSTRAINT provider_durations_pkey PRIMARY KEY (tenant, session_id),
    CONSTRAINT provider_durations_check CHECK (
        started_at <= ended_at AND elapsed_ms >= 0 AND facts_ms >= 0 AND provider_ms >= 0
        AND asked_ms >= 0 AND uncollected_ms >= 0 AND uncollected_micros >= 0
    )
);

-- For reports by day, of a tenant or of all.
CREATE INDEX provider_durations_by_start ON provider_durations (tenant, started_at, session_id);
CREATE INDEX provider_durations_newest ON provider_durations (started_at, tenant, session_id);
-- For the call of a session.
CREATE INDEX call_participants_of_session ON call_participants (tenant, session_id)
    WHERE session_id IS NOT NULL;

-- The people who may look at all tenants, or act for them, and what they did. These tables are the
-- installation's. An operator without a password is named by a trusted proxy.
CREATE TABLE operators (
    name text NOT NULL,
    role text NOT NULL,
    password_hash text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT operators_pkey PRIMARY KEY (name),
    CONSTRAINT operators_role_check CHECK (role IN ('read', 'act'))
);

-- The sessions of cookies, by the hash of the cookie's secret. `operator` is null where a token
-- became a cookie: then `scope` is the token's; an operator's role is read where it is needed.
CREATE TABLE operator_sessions (
    secret_hash bytea NOT NULL,
    actor text NOT NULL,
    via text NOT NULL,
    operator text,
    scope text,
    org_id text,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    CONSTRAINT operator_sessions_pkey PRIMARY KEY (secret_hash),
    CONSTRAINT operator_sessions_operator_fkey
        FOREIGN KEY (operator) REFERENCES operators (name) ON DELETE CASCADE,
    CONSTRAINT operator_sessions_via_check CHECK (via IN ('password', 'proxy', 'token')),
    CONSTRAINT operator_sessions_scope_check CHECK ((operator IS NULL) <> (scope IS NULL))
);

CREATE INDEX operator_sessions_of_actor ON operator_sessions (actor, created_at);
CREATE INDEX operator_sessions_by_end ON operator_sessions (expires_at);

-- The operators' log: one row for each intent, written before anything is done. A row of
-- `operator_outcomes` follows. A repeated attempt adds one only where it outweighs it: `done`, then
-- `refused`, then `failed`; the weightiest counts. An intent without an outcome is one whose process died, or whose answer nothing recorded.
CREATE TABLE operator_actions (
    action_id text NOT NULL,
    position bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL,
    actor text NOT NULL,
    via text NOT NULL,
    action text NOT NULL,
    target text NOT NULL,
    tenant text,
    reason text,
    before jsonb,
    request_id text NOT NULL,
    CONSTRAINT operator_actions_pkey PRIMARY KEY (action_id),
    CONSTRAINT operator_actions_position_key UNIQUE (position)
);

CREATE INDEX operator_actions_of_actor ON operator_actions (actor, position);
CREATE INDEX operator_actions_of_target ON operator_actions (target, position);

CREATE TABLE operator_outcomes (
    action_id text NOT NULL,
    position bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL,
    outcome text NOT NULL,
    code text,
    after jsonb,
    CONSTRAINT operator_outcomes_pkey PRIMARY KEY (action_id, position),
    CONSTRAINT operator_outcomes_action_id_fkey
        FOREIGN KEY (action_id) REFERENCES operator_actions (action_id),
    CONSTRAINT operator_outcomes_outcome_check CHECK (outcome IN ('done', 'refused', 'failed'))
);

CREATE FUNCTION refuse_log_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'the log of operators is append-only: % is refused', TG_OP
        USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER refuse_action_change
    BEFORE UPDATE OR DELETE OR TRUNCATE ON operator_actions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_log_change();

CREATE TRIGGER refuse_outcome_change
    BEFORE UPDATE OR DELETE OR TRUNCATE ON operator_outcomes
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_log_change();
