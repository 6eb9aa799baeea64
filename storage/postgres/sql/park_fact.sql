-- Parks a fact of a participant who cannot be mapped, and lists the run and the participant as
-- parked, unless the call's plan is newer than the one that was looked at ($6). Answers whether it
-- is parked.
WITH looked AS (
    SELECT coalesce(max(version), 0) AS version
    FROM calls
    WHERE provider = $1 AND call_id = $3
), parked AS (
    UPDATE call_facts SET state = 'parked'
    FROM looked
    WHERE provider = $1 AND fact_key = $2 AND state = 'waiting' AND looked.version = $6
    RETURNING call_session
), run AS (
    UPDATE call_sessions AS run SET is_parked = true
    FROM parked
    WHERE run.provider = $1 AND run.call_session = parked.call_session
    RETURNING run.call_session, run.call_id, run.seen_at
), person AS (
    INSERT INTO call_participants AS known (
        provider, call_session, participant, call_id, seen_at, parked_because
    )
    SELECT $1, call_session, $4, call_id, seen_at, $5 FROM run
    ON CONFLICT (provider, call_session, participant) DO UPDATE
    SET parked_because = excluded.parked_because
    WHERE known.parked_because IS NOT NULL
)
SELECT EXISTS (SELECT FROM parked)
