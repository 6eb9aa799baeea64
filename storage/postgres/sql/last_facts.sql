-- The last fact of each device of a run, and the last beginning and end of the run, in the order in
-- which they came in: at most $3, the newest.
SELECT row_to_json(answer)::text
FROM (
    SELECT position, state, epoch_ms(received_at) AS received_at, fact
    FROM (
        SELECT DISTINCT ON (
            participant, fact ->> 'device', CASE WHEN participant IS NULL THEN fact ->> 'kind' END
        ) position, state, received_at, fact
        FROM call_facts
        WHERE provider = $1 AND call_session = $2
        ORDER BY
            participant, fact ->> 'device',
            CASE WHEN participant IS NULL THEN fact ->> 'kind' END,
            (fact ->> 'at_ms')::bigint DESC, position DESC
    ) AS last
    ORDER BY position DESC
    LIMIT $3
) AS answer
ORDER BY position
