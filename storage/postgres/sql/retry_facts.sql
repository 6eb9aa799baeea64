-- Lets the parked facts of a call ($1 provider, $2 id) be applied again at once ($3, epoch ms).
-- Answers how many.
WITH again AS (
    UPDATE call_facts SET state = 'waiting', due_at = instant($3), attempts = 0, error = NULL
    WHERE provider = $1 AND call_id = $2 AND state = 'parked'
    RETURNING call_session
), run AS (
    UPDATE call_sessions AS run SET is_parked = EXISTS (
        SELECT FROM call_participants AS person
        WHERE person.provider = $1 AND person.call_session = run.call_session
          AND person.parked_because IS NOT NULL
    )
    WHERE run.provider = $1 AND run.call_session IN (SELECT call_session FROM again)
)
SELECT count(*) FROM again
