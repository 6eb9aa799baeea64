-- Makes or changes an organisation. Each value comes with a flag that says whether it is given.
-- A value that is not given stays, or takes the column's default. $11 is the number of this change.
-- A value that a newer change has set stays, too: this statement came late, or was sent again.
INSERT INTO organizations AS organization (
    tenant, org_id, tier, timezone, monthly_hours_limit, allow_overage, changed_at,
    tier_change, timezone_change, limit_change, overage_change
)
VALUES (
    $1,
    $2,
    CASE WHEN $3::boolean THEN $4::text ELSE 'free' END,
    CASE WHEN $5::boolean THEN $6::text ELSE 'UTC' END,
    CASE WHEN $7::boolean THEN $8::text::numeric END,
    CASE WHEN $9::boolean THEN $10::boolean ELSE false END,
    now(),
    CASE WHEN $3 THEN $11::bigint ELSE 0 END,
    CASE WHEN $5 THEN $11 ELSE 0 END,
    CASE WHEN $7 THEN $11 ELSE 0 END,
    CASE WHEN $9 THEN $11 ELSE 0 END
)
ON CONFLICT (tenant) DO UPDATE SET
    tier = CASE
        WHEN excluded.tier_change > organization.tier_change THEN excluded.tier
        ELSE organization.tier
    END,
    timezone = CASE
        WHEN excluded.timezone_change > organization.timezone_change THEN excluded.timezone
        ELSE organization.timezone
    END,
    monthly_hours_limit = CASE
        WHEN excluded.limit_change > organization.limit_change THEN excluded.monthly_hours_limit
        ELSE organization.monthly_hours_limit
    END,
    allow_overage = CASE
        WHEN excluded.overage_change > organization.overage_change THEN excluded.allow_overage
        ELSE organization.allow_overage
    END,
    tier_change = greatest(organization.tier_change, excluded.tier_change),
    timezone_change = greatest(organization.timezone_change, excluded.timezone_change),
    limit_change = greatest(organization.limit_change, excluded.limit_change),
    overage_change = greatest(organization.overage_change, excluded.overage_change),
    changed_at = excluded.changed_at
RETURNING row_to_json(organization)::text
