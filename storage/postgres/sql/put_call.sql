-- Keeps what a backend says about a call, and lets its parked facts be applied again at once. The
-- same plan again changes nothing, but is another chance for what is parked.
WITH put AS (
    INSERT INTO calls AS known (provider, call_id, plan, changed_at)
    VALUES ($1, $2, $3::text::jsonb, instant($4))
    ON CONFLICT (provider, call_id) DO UPDATE SET
        version = known.version + 1,
        plan = excluded.plan,
        changed_at = excluded.changed_at
    RETURNING version
), waiting AS (
    UPDATE call_facts SET state = 'waiting', due_at = instant($4), attempts = 0
    WHERE provider = $1 AND call_id = $2 AND state = 'parked'
)
SELECT version FROM put
