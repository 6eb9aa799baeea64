-- Corrections of a month's minutes, and the minutes beyond a limit that does not stop.

-- Of the minutes of a month, those beyond the limit of an organisation that allows
-- overage, as the limit was when they were written down: for whoever bills them apart.
ALTER TABLE monthly_usage_cache
    ADD COLUMN overage_minutes integer NOT NULL DEFAULT 0,
    ADD CONSTRAINT monthly_usage_cache_overage_check
        CHECK (overage_minutes BETWEEN 0 AND total_minutes);

-- Each is an entry of its own; what it corrects is never edited. `is_applied` says that
-- Redis took it; what a dead process left is applied by the sweep.
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

-- Once for each statement, over all rows that were really new: one update a member and
-- batch, however many minutes the batch has. Rows are taken in the order of their keys,
-- organisations before members before the cache, so that two flushers cannot wait for
-- each other in a circle.
CREATE OR REPLACE FUNCTION update_member_usage() RETURNS trigger
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

-- An adjustment changes the month at once, and the overage by as much as it moves the
-- organisation's month over its limit. More than there is cannot be taken away: the
-- constraint on the totals refuses it. Seconds are what was measured, and stay.
CREATE FUNCTION apply_minute_adjustment() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
DECLARE
    minutes_limit integer;
    used bigint;
    beyond integer := 0;
BEGIN
    SELECT limit_minutes(monthly_hours_limit) INTO minutes_limit
    FROM organizations
    WHERE tenant = NEW.tenant AND allow_overage
    FOR UPDATE;

    IF NEW.tenant LIKE 'org:%' THEN
        INSERT INTO organization_members (tenant, user_id)
        VALUES (NEW.tenant, NEW.user_id)
        ON CONFLICT (tenant, user_id) DO NOTHING;

        UPDATE organization_members AS member SET
            current_month_minutes_used = greatest(0, NEW.minutes
                + CASE WHEN current_month_start = NEW.month
                       THEN current_month_minutes_used ELSE 0 END),
            current_month_start = NEW.month
        WHERE tenant = NEW.tenant AND user_id = NEW.user_id
          AND (current_month_start IS NULL OR current_month_start <= NEW.month);
    END IF;

    IF minutes_limit IS NOT NULL THEN
        SELECT coalesce(sum(total_minutes), 0) INTO used
        FROM monthly_usage_cache
        WHERE tenant = NEW.tenant AND month = NEW.month;
        beyond := greatest(0, used + NEW.minutes - minutes_limit)
            - greatest(0, used - minutes_limit);
    END IF;

    INSERT INTO monthly_usage_cache (
        tenant, user_id, month, org_id, total_minutes, total_seconds
    )
    VALUES (
        NEW.tenant, NEW.user_id, NEW.month, substring(NEW.tenant FROM '^org:(.*)$'), 0, 0
    )
    ON CONFLICT (tenant, user_id, month) DO NOTHING;

    UPDATE monthly_usage_cache SET
        total_minutes = total_minutes + NEW.minutes,
        overage_minutes = least(
            greatest(overage_minutes + beyond, 0), greatest(total_minutes + NEW.minutes, 0)
        )
    WHERE tenant = NEW.tenant AND user_id = NEW.user_id AND month = NEW.month;

    RETURN NULL;
END
$$;

CREATE TRIGGER apply_minute_adjustment
    AFTER INSERT ON minute_adjustments
    FOR EACH ROW EXECUTE FUNCTION apply_minute_adjustment();
