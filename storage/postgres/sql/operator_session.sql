-- A session that has not ended, with the scope of this moment.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        session.actor, session.via, session.org_id,
        CASE operator.role WHEN 'act' THEN 'ops' WHEN 'read' THEN 'ops:read' ELSE session.scope END
            AS scope,
        epoch_ms(session.expires_at) AS expires_at
    FROM operator_sessions AS session
    LEFT JOIN operators AS operator ON operator.name = session.operator
    WHERE session.secret_hash = $1 AND session.expires_at > instant($2)
) AS answer
