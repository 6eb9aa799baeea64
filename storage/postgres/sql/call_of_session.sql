-- The run of a call that a session ($1 tenant, $2 id) meters, with the newest $3 facts of its
-- participants and ends of the run. Several participants may be one user: then their facts
-- count together.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        run.provider, run.call_session, run.call_id, run.rest_name,
        epoch_ms(run.swept_at) AS swept_at,
        (array_agg(person.participant ORDER BY person.participant)) AS participants,
        (array_agg(person.mapping ORDER BY person.participant))[1] AS mapping,
        coalesce(
            (
                SELECT json_agg(kept)
                FROM (
                    SELECT
                        concat_ws('/', fact.participant, fact.fact ->> 'device') AS device,
                        fact.fact ->> 'kind' AS kind,
                        (fact.fact ->> 'at_ms')::bigint AS at_ms,
                        (fact.fact ->> 'provider_duration_ms')::bigint AS provider_ms,
                        coalesce((fact.fact ->> 'is_guess')::boolean, false) AS is_guess
                    FROM call_facts AS fact
                    WHERE fact.provider = run.provider
                      AND fact.call_session = run.call_session
                      -- Beginnings and hints of the run, which may be many, say nothing here.
                      AND ((fact.participant IS NULL AND fact.fact ->> 'kind' = 'ended')
                           OR fact.participant = ANY (array_agg(person.participant)))
                    ORDER BY fact.position DESC
                    LIMIT $3
                ) AS kept
            ),
            '[]'
        ) AS facts
    FROM call_participants AS person
    JOIN call_sessions AS run USING (provider, call_session)
    WHERE person.tenant = $1 AND person.session_id = $2
    GROUP BY run.provider, run.call_session, run.call_id, run.rest_name, run.swept_at
) AS answer
