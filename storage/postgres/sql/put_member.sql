-- Makes or changes a member. A limit that is not given stays, and so do the figures of the
-- month, which only the trigger writes.
INSERT INTO organization_members AS member (tenant, user_id, monthly_hours_limit, changed_at)
VALUES ($1, $2, CASE WHEN $3::boolean THEN $4::text::numeric END, now())
ON CONFLICT (tenant, user_id) DO UPDATE SET
    monthly_hours_limit = CASE
        WHEN $3 THEN excluded.monthly_hours_limit ELSE member.monthly_hours_limit
    END,
    changed_at = excluded.changed_at
RETURNING row_to_json(member)::text
