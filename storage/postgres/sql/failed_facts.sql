-- The facts of runs ($1 providers, $2 runs) that failed each time: at most $3 of each run, the oldest.
SELECT row_to_json(answer)::text
FROM (
    SELECT failed.*
    FROM unnest($1::text[], $2::text[]) AS asked (provider, call_session)
    CROSS JOIN LATERAL (
        SELECT
            provider, call_session, call_id, participant, fact ->> 'kind' AS kind,
            (fact ->> 'at_ms')::bigint AS happened_at, epoch_ms(received_at) AS received_at,
            attempts, error
        FROM call_facts AS one
        WHERE one.provider = asked.provider AND one.call_session = asked.call_session
          AND one.error IS NOT NULL
        ORDER BY position
        LIMIT $3
    ) AS failed
) AS answer
