-- Maps a participant of a run, once; answers the mapping that counts.
WITH mapped AS (
    INSERT INTO call_participants AS known (
        provider, call_session, participant, call_id, seen_at, tenant, session_id, user_id,
        org_id, mapping
    )
    SELECT $1, $2, $3, call_id, seen_at, $4, $5, $6, $7, $8::text::jsonb
    FROM call_sessions
    WHERE provider = $1 AND call_session = $2
    ON CONFLICT (provider, call_session, participant) DO UPDATE SET
        parked_because = NULL,
        tenant = excluded.tenant,
        session_id = excluded.session_id,
        user_id = excluded.user_id,
        org_id = excluded.org_id,
        mapping = excluded.mapping
    WHERE known.parked_because IS NOT NULL
    RETURNING known.*
), run AS (
    UPDATE call_sessions AS run SET is_parked = false
    FROM mapped
    WHERE run.provider = mapped.provider AND run.call_session = mapped.call_session
      AND run.is_parked
      AND NOT EXISTS (
          SELECT FROM call_participants AS other
          WHERE other.provider = $1 AND other.call_session = $2
            AND other.participant <> $3 AND other.parked_because IS NOT NULL
      )
      AND NOT EXISTS (
          SELECT FROM call_facts AS failed
          WHERE failed.provider = $1 AND failed.call_session = $2 AND failed.error IS NOT NULL
      )
)
SELECT row_to_json(answer)::text
FROM (
    SELECT
        provider, call_session, participant, call_id, parked_because, tenant, session_id,
        user_id, org_id, mapping
    FROM mapped
    UNION ALL
    SELECT
        provider, call_session, participant, call_id, parked_because, tenant, session_id,
        user_id, org_id, mapping
    FROM call_participants
    WHERE provider = $1 AND call_session = $2 AND participant = $3
      AND NOT EXISTS (SELECT FROM mapped)
) AS answer
