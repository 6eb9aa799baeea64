-- Organisations, sessions and their minutes, and what is asked of them.

CREATE FUNCTION instant(p_ms bigint) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ SELECT to_timestamp(p_ms / 1000.0) $$;

CREATE FUNCTION epoch_ms(p_at timestamptz) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ SELECT floor(extract(epoch FROM p_at) * 1000)::bigint $$;

CREATE FUNCTION tenant_of(p_user text, p_org text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT coalesce('org:' || p_org, 'user:' || p_user) $$;

-- Plans define their limits in hours, usage is counted in minutes: 0.99 hours are 59.
CREATE FUNCTION limit_minutes(p_hours numeric) RETURNS integer
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ SELECT floor(p_hours * 60)::integer $$;

CREATE TABLE organizations (
    tenant text NOT NULL,
    org_id text NOT NULL,
    tier text NOT NULL DEFAULT 'free',
    timezone text NOT NULL DEFAULT 'UTC',
    monthly_hours_limit numeric,
    allow_overage boolean NOT NULL DEFAULT false,
    CONSTRAINT organizations_pkey PRIMARY KEY (tenant),
    -- The bound keeps the limit in minutes within an integer, and NaN out.
    CONSTRAINT organizations_limit_check CHECK (monthly_hours_limit BETWEEN 0 AND 1000000),
    -- Raises for a zone that Postgres does not know, so that no query stumbles over it.
    CONSTRAINT organizations_timezone_check
        CHECK (timestamptz 'epoch' AT TIME ZONE timezone IS NOT NULL)
);

CREATE TABLE organization_members (
    tenant text NOT NULL,
    user_id text NOT NULL,
    monthly_hours_limit numeric,
    current_month_minutes_used integer NOT NULL DEFAULT 0,
    current_month_start date,
    CONSTRAINT organization_members_pkey PRIMARY KEY (tenant, user_id),
    CONSTRAINT organization_members_limit_check
        CHECK (monthly_hours_limit BETWEEN 0 AND 1000000)
);

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
    CONSTRAINT sessions_pkey PRIMARY KEY (tenant, session_id),
    CONSTRAINT sessions_state_check CHECK (state IN ('prepared', 'live', 'ended')),
    CONSTRAINT sessions_started_check CHECK (state = 'prepared' OR started_at IS NOT NULL),
    CONSTRAINT sessions_ended_check
        CHECK ((state = 'ended') = (ended_at IS NOT NULL AND reason IS NOT NULL)),
    CONSTRAINT sessions_figures_check CHECK (
        elapsed_ms >= 0 AND free_ms >= 0 AND billed_ms >= 0
        AND minutes >= 0 AND charged_micros >= 0 AND uncovered_ms >= 0
    )
);

CREATE INDEX sessions_by_user ON sessions (tenant, user_id, started_at);

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
-- What is left of the free time of a user and a counterpart, or of a day.
CREATE INDEX usage_tracking_free ON usage_tracking (tenant, user_id, kind, counterpart_id)
    WHERE free_ms > 0;

-- Counting minutes of a user's month, with or without an organisation. The sum over a
-- tenant and month is the organisation's month.
CREATE TABLE monthly_usage_cache (
    tenant text NOT NULL,
    user_id text NOT NULL,
    month date NOT NULL,
    org_id text,
    total_minutes integer NOT NULL,
    total_seconds bigint NOT NULL,
    CONSTRAINT monthly_usage_cache_pkey PRIMARY KEY (tenant, user_id, month),
    CONSTRAINT monthly_usage_cache_totals_check
        CHECK (total_minutes >= 0 AND total_seconds >= 0)
);

CREATE INDEX monthly_usage_cache_by_month ON monthly_usage_cache (tenant, month);

-- Once for each statement, over all rows that were really new: one update a member and
-- batch, however many minutes the batch has. Rows are taken in the order of their keys,
-- members before the cache, so that two flushers cannot wait for each other in a circle.
CREATE FUNCTION update_member_usage() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
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

    INSERT INTO monthly_usage_cache AS cache
        (tenant, user_id, month, org_id, total_minutes, total_seconds)
    SELECT tenant, user_id, month, max(org_id), count(*), sum(seconds)
    FROM new_minutes
    WHERE counts
    GROUP BY tenant, user_id, month
    ORDER BY tenant, user_id, month
    ON CONFLICT (tenant, user_id, month) DO UPDATE SET
        total_minutes = cache.total_minutes + excluded.total_minutes,
        total_seconds = cache.total_seconds + excluded.total_seconds;

    RETURN NULL;
END
$$;

CREATE TRIGGER update_member_usage
    AFTER INSERT ON usage_tracking
    REFERENCING NEW TABLE AS new_minutes
    FOR EACH STATEMENT EXECUTE FUNCTION update_member_usage();

-- Whether a user may record at an instant, and the limit that decides it: the more
-- restrictive of the member's and the organisation's, which is the one that has less
-- left of the calendar month in the organisation's time zone. An organisation that
-- allows overage is told of its limit but not stopped by it; the limit that it set for
-- a member stops the member all the same. No limit: nulls, and 0 per cent. No row: no
-- limit, UTC.
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

-- Usage by day, in the organisation's time zone, from the first day up to, and without,
-- the last. Minutes and seconds are of the kinds that count, so that days add up to
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
