-- The participants of runs ($1 providers, $2 runs), mapped and parked, at most $3. Of one run, a
-- page after the participant $4.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        person.provider, person.call_session, participant, call_id, parked_because, tenant,
        session_id, user_id, org_id, mapping
    FROM unnest($1::text[], $2::text[]) AS asked (provider, call_session)
    JOIN call_participants AS person USING (provider, call_session)
    WHERE participant > $4
    ORDER BY provider, call_session, participant
    LIMIT $3
) AS answer
