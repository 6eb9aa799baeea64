-- Corrections of minutes that a session's end contradicts: entries of the kind `burn` with a
-- reason, of either sign, and months that follow.
ALTER TABLE credit_ledger
    DROP CONSTRAINT credit_ledger_sign_check,
    ADD CONSTRAINT credit_ledger_sign_check CHECK (
        CASE entry_kind
            WHEN 'grant' THEN amount_micros >= 0
            WHEN 'burn' THEN amount_micros <= 0 OR reason IS NOT NULL
            WHEN 'spend' THEN amount_micros <= 0
            WHEN 'expire' THEN amount_micros <= 0
            ELSE true
        END
    );

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
CREATE OR REPLACE FUNCTION apply_minute_adjustment() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM move_month(NEW.tenant, NEW.user_id, NEW.month, NEW.minutes, 0);
    RETURN NULL;
END
$$;
