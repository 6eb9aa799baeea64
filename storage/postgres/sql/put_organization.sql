-- Makes or changes an organisation. Each value comes with a flag that says whether it is given.
-- A value that is not given stays, or takes the column's default.
INSERT INTO organizations AS organization
    (tenant, org_id, tier, timezone, monthly_hours_limit, allow_overage, changed_at)
VALUES (
    $1,
    $2,
    CASE WHEN $3::boolean THEN $4::text ELSE 'free' END,
    CASE WHEN $5::boolean THEN $6::text ELSE 'UTC' END,
    CASE WHEN $7::boolean THEN $8::text::numeric END,
    CASE WHEN $9::boolean THEN $10::boolean ELSE false END,
    now()
)
ON CONFLICT (tenant) DO UPDATE SET
    tier = CASE WHEN $3 THEN excluded.tier ELSE organization.tier END,
    timezone = CASE WHEN $5 THEN excluded.timezone ELSE organization.timezone END,
    monthly_hours_limit = CASE
        WHEN $7 THEN excluded.monthly_hours_limit ELSE organization.monthly_hours_limit
    END,
    allow_overage = CASE
        WHEN $9 THEN excluded.allow_overage ELSE organization.allow_overage
    END,
    changed_at = excluded.changed_at
RETURNING row_to_json(organization)::text
