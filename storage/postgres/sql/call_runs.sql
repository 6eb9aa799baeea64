-- The newest $3 runs of a call's id ($1), of one provider ($2) or of all.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        provider, call_session, call_id, rest_name,
        CASE WHEN is_parked THEN 'parked' WHEN ended_at IS NULL THEN 'active' ELSE 'ended' END
            AS state,
        epoch_ms(seen_at) AS seen_at, epoch_ms(started_at) AS started_at,
        epoch_ms(ended_at) AS ended_at, epoch_ms(swept_at) AS swept_at
    FROM call_sessions
    WHERE call_id = $1 AND ($2::text IS NULL OR provider = $2)
    ORDER BY seen_at DESC, provider DESC, call_session DESC
    LIMIT $3
) AS answer
