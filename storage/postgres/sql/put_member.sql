-- Makes or changes a member. A limit that is not given stays, and so do the figures of the
-- month, which only the trigger writes. $5 is the number of this change. A limit that a newer change
-- has set stays, too: this statement came late, or was sent again.
INSERT INTO organization_members AS member
    (tenant, user_id, monthly_hours_limit, changed_at, limit_change)
VALUES (
    $1,
    $2,
    CASE WHEN $3::boolean THEN $4::text::numeric END,
    now(),
    CASE WHEN $3::boolean THEN $5::bigint ELSE 0 END
)
ON CONFLICT (tenant, user_id) DO UPDATE SET
    monthly_hours_limit = CASE
        WHEN excluded.limit_change > member.limit_change THEN excluded.monthly_hours_limit
        ELSE member.monthly_hours_limit
    END,
    limit_change = greatest(member.limit_change, excluded.limit_change),
    changed_at = excluded.changed_at
RETURNING row_to_json(member)::text
