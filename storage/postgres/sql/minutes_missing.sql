-- Completed minutes of the given sessions that are not in the record.
SELECT row_to_json(answer)::text
FROM (
    SELECT asked.tenant, asked.session_id, series.minute
    FROM unnest($1::text[], $2::text[], $3::integer[]) AS asked (tenant, session_id, minutes)
    CROSS JOIN LATERAL generate_series(0, asked.minutes - 1) AS series (minute)
    WHERE NOT EXISTS (
        SELECT FROM usage_tracking AS used
        WHERE used.tenant = asked.tenant
          AND used.session_id = asked.session_id
          AND used.minute = series.minute
    )
    ORDER BY asked.tenant, asked.session_id, series.minute
) AS answer
