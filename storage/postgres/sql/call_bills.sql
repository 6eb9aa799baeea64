-- The recorded bills of the runs that have facts of a span ($1 to $2, epoch ms, by when they came
-- in), after the session ($3 tenant, $4 id), at most $5.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        session.tenant, session.session_id, session.state, session.elapsed_ms,
        coalesce(sum(used.charged_micros), 0)::bigint AS charged_micros,
        count(used.minute)::integer AS minutes
    FROM (
        SELECT DISTINCT person.tenant, person.session_id
        FROM call_facts AS fact
        JOIN call_participants AS person USING (provider, call_session)
        WHERE fact.received_at >= instant($1) AND fact.received_at < instant($2)
          AND person.session_id IS NOT NULL
          AND (person.tenant, person.session_id) > ($3, $4)
        ORDER BY person.tenant, person.session_id
        LIMIT $5
    ) AS asked
    JOIN sessions AS session USING (tenant, session_id)
    LEFT JOIN usage_tracking AS used USING (tenant, session_id)
    GROUP BY session.tenant, session.session_id
    ORDER BY session.tenant, session.session_id
) AS answer
