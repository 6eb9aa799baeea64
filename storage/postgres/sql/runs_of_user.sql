-- The newest $6 runs in which a user is mapped ($1 tenant, $2 user): of one call ($3) or of all, of
-- one provider ($4) or of all, only those that go on ($5) or all.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        json_build_object(
            'provider', run.provider, 'call_session', run.call_session, 'call_id', run.call_id,
            'rest_name', run.rest_name,
            'state', CASE
                WHEN run.is_parked THEN 'parked' WHEN run.ended_at IS NULL THEN 'active'
                ELSE 'ended'
            END,
            'seen_at', epoch_ms(run.seen_at), 'started_at', epoch_ms(run.started_at),
            'ended_at', epoch_ms(run.ended_at), 'swept_at', epoch_ms(run.swept_at)
        ) AS run,
        json_build_object(
            'provider', person.provider, 'call_session', person.call_session,
            'participant', person.participant, 'call_id', person.call_id,
            'parked_because', person.parked_because, 'tenant', person.tenant,
            'session_id', person.session_id, 'user_id', person.user_id,
            'org_id', person.org_id, 'mapping', person.mapping
        ) AS person
    FROM call_participants AS person
    JOIN call_sessions AS run USING (provider, call_session)
    WHERE person.user_id = $2 AND person.tenant = $1
      AND ($3::text IS NULL OR person.call_id = $3)
      AND ($4::text IS NULL OR person.provider = $4)
      AND NOT ($5::boolean AND run.ended_at IS NOT NULL)
    ORDER BY person.seen_at DESC, person.provider DESC, person.call_session DESC
    LIMIT $6
) AS answer
