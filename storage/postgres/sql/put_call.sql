-- Keeps what a backend says about a call.
INSERT INTO calls AS known (provider, call_id, plan, changed_at)
VALUES ($1, $2, $3::text::jsonb, instant($4))
ON CONFLICT (provider, call_id) DO UPDATE SET
    version = known.version + 1,
    plan = excluded.plan,
    changed_at = excluded.changed_at
RETURNING version
