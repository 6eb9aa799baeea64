-- The newest $3 facts of a run, in the order in which they came in; of one participant ($4), or of
-- all.
SELECT row_to_json(answer)::text
FROM (
    SELECT *
    FROM (
        SELECT position, state, epoch_ms(received_at) AS received_at, fact
        FROM call_facts
        WHERE provider = $1 AND call_session = $2 AND ($4::text IS NULL OR participant = $4)
        ORDER BY position DESC
        LIMIT $3
    ) AS newest
    ORDER BY position
) AS answer
