-- Of the given sessions, those that have ended with other figures than their minutes have, each
-- with its minutes. Minutes that are missing may still be on their way, unless $3 says that the
-- end has replaced another one: then they may have been left out because of that end.
SELECT row_to_json(answer)::text
FROM (
    SELECT
        session.tenant, session.session_id, session.state, session.kind, session.user_id,
        session.org_id, session.account_id, session.counterpart_id,
        epoch_ms(session.started_at) AS started_at, epoch_ms(session.ended_at) AS ended_at,
        session.reason, session.limit_name, session.elapsed_ms, session.free_ms,
        session.billed_ms, session.minutes, session.charged_micros, session.uncovered_ms,
        session.segments, session.gaps, session.terms, session.metadata, session.is_reported,
        asked.is_replaced,
        coalesce(organization.timezone, 'UTC') AS timezone,
        coalesce(
            (
                SELECT json_agg(recorded ORDER BY minute)
                FROM (
                    SELECT
                        minute, epoch_ms(started_at) AS started_at, seconds, free_ms,
                        charged_micros, month
                    FROM usage_tracking AS used
                    WHERE used.tenant = session.tenant AND used.session_id = session.session_id
                ) AS recorded
            ),
            '[]'
        ) AS recorded
    FROM unnest($1::text[], $2::text[], $3::boolean[]) AS asked (tenant, session_id, is_replaced)
    JOIN sessions AS session USING (tenant, session_id)
    LEFT JOIN organizations AS organization USING (tenant)
    CROSS JOIN LATERAL (
        SELECT
            count(*) AS minutes,
            coalesce(max(minute), -1) AS last,
            coalesce(bool_or(used.seconds < 60 AND used.minute < session.minutes - 1), false)
                AS has_short,
            coalesce(sum(seconds), 0) AS seconds,
            coalesce(sum(charged_micros), 0) AS charged_micros
        FROM usage_tracking AS used
        WHERE used.tenant = session.tenant AND used.session_id = session.session_id
    ) AS had
    WHERE session.state = 'ended'
      AND CASE
          WHEN session.reason = 'node_lost' THEN had.minutes > session.minutes
          WHEN had.last >= session.minutes THEN true
          WHEN session.is_reported THEN false  -- the client has dated the minutes
          WHEN had.has_short THEN true  -- only the last minute is short
          WHEN had.minutes < session.minutes THEN asked.is_replaced
          ELSE (had.seconds, had.charged_micros)
              <> (ceil(session.elapsed_ms / 1000.0), session.charged_micros)
      END
    ORDER BY session.tenant, session.session_id
) AS answer
