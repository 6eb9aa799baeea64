-- Sessions of one tenant by their ids.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        tenant, session_id, state, kind, user_id, org_id, account_id, counterpart_id,
        epoch_ms(started_at) AS started_at, epoch_ms(ended_at) AS ended_at,
        reason, limit_name, elapsed_ms, free_ms, billed_ms, minutes, charged_micros,
        uncovered_ms, segments, gaps, terms, metadata, is_reported,
        epoch_ms(expires_at) AS expires_at
    FROM sessions
    WHERE tenant = $1 AND session_id = ANY($2::text[])
    ORDER BY session_id
) AS answer
