-- What decides whose a fact of a participant ($4; null: of the run) is.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        call.plan, coalesce(call.version, 0) AS version, run.custom, run.ended_fact,
        (
            SELECT row_to_json(person)
            FROM (
                SELECT
                    provider, call_session, participant, call_id, parked_because, tenant,
                    session_id, user_id, org_id, mapping
                FROM call_participants
                WHERE provider = $1 AND call_session = $3 AND participant = $4
            ) AS person
        ) AS participant
    FROM call_sessions AS run
    LEFT JOIN calls AS call ON call.provider = run.provider AND call.call_id = $2
    WHERE run.provider = $1 AND run.call_session = $3
) AS answer
