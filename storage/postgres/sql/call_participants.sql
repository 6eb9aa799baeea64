-- The participants of runs ($1 providers, $2 runs), mapped and parked, at most $3 of each run. Of
-- one run, a page after the participant $4.
SELECT row_to_json(answer)::text
FROM (
    SELECT person.*
    FROM unnest($1::text[], $2::text[]) AS asked (provider, call_session)
    CROSS JOIN LATERAL (
        SELECT
            provider, call_session, participant, call_id, parked_because, tenant, session_id,
            user_id, org_id, mapping
        FROM call_participants AS one
        WHERE one.provider = asked.provider AND one.call_session = asked.call_session
          AND one.participant > $4
        ORDER BY participant
        LIMIT $3
    ) AS person
    ORDER BY provider, call_session, participant
) AS answer
