-- A page of the operators' log, newest first, below a position (null: from the newest).
SELECT row_to_json(answer)::text
FROM (
    SELECT
        action.action_id, action.position, epoch_ms(action.at) AS at, action.actor, action.via,
        action.action, action.target, action.tenant, action.reason, action.before, final.after,
        coalesce(final.outcome, 'begun') AS outcome, final.code, action.request_id
    FROM operator_actions AS action
    LEFT JOIN LATERAL (
        SELECT outcome, code, after FROM operator_outcomes AS outcome
        WHERE outcome.action_id = action.action_id
        -- Attempts that end at the same instant may leave several: the weightiest counts.
        ORDER BY
            array_position(ARRAY['done', 'refused', 'failed'], outcome.outcome), outcome.position
        LIMIT 1
    ) AS final ON true
    WHERE ($1::bigint IS NULL OR action.position < $1)
      AND ($3::text IS NULL OR action.actor = $3)
      AND ($4::text IS NULL OR action.action = $4)
      AND ($5::text IS NULL OR action.target = $5)
      AND ($6::text IS NULL OR coalesce(final.outcome, 'begun') = $6)
      AND ($7::bigint IS NULL OR action.at >= instant($7))
      AND ($8::bigint IS NULL OR action.at < instant($8))
    ORDER BY action.position DESC
    LIMIT $2
) AS answer
