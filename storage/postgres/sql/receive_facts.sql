-- Keeps facts that are new, and their runs, in one statement; answers the new ones in order. Each
-- array has one element for each fact. $13: when they came in, $14: until when the caller applies
-- them, $15: when their runs are swept, $16: when runs are swept that want it soon (epoch ms).
WITH given AS (
    SELECT *
    FROM unnest(
        $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[],
        $8::text[], $9::text[], $10::text[], $11::boolean[], $12::bytea[]
    ) WITH ORDINALITY AS given (
        provider, fact_key, call_id, call_session, participant, fact, happened_at, edge,
        rest_name, custom, wants_sweep, body, number
    )
), kept AS (
    INSERT INTO call_facts (
        provider, fact_key, call_id, call_session, participant, fact, body, received_at, due_at
    )
    SELECT
        provider, fact_key, call_id, call_session, participant, fact::jsonb, body,
        instant($13), instant($14)
    FROM given
    ORDER BY number
    ON CONFLICT (provider, fact_key) DO NOTHING
    RETURNING provider, fact_key, position, call_id, call_session, fact
), runs AS (
    INSERT INTO call_sessions AS known (
        provider, call_session, call_id, rest_name, custom, seen_at, started_at, ended_at,
        ended_fact, sweep_at
    )
    SELECT
        provider, call_session, min(given.call_id), max(rest_name),
        coalesce((array_agg(custom::jsonb ORDER BY number) FILTER (WHERE custom <> '{}'))[1], '{}'),
        instant($13), instant(min(happened_at) FILTER (WHERE edge = 'started')),
        instant(min(happened_at) FILTER (WHERE edge = 'ended')),
        (array_agg(given.fact::jsonb ORDER BY happened_at) FILTER (WHERE edge = 'ended'))[1],
        instant(CASE WHEN bool_or(wants_sweep) THEN $16::bigint ELSE $15::bigint END)
    FROM kept
    JOIN given USING (provider, fact_key, call_session)
    GROUP BY provider, call_session
    ORDER BY provider, call_session
    ON CONFLICT (provider, call_session) DO UPDATE SET
        rest_name = CASE excluded.rest_name WHEN '' THEN known.rest_name ELSE excluded.rest_name END,
        custom = CASE excluded.custom WHEN '{}' THEN known.custom ELSE excluded.custom END,
        started_at = least(known.started_at, excluded.started_at),
        ended_at = coalesce(known.ended_at, excluded.ended_at),
        ended_fact = coalesce(known.ended_fact, excluded.ended_fact),
        -- A run that was settled is swept once more after news. A failing run keeps its pace.
        sweep_at = CASE
            WHEN excluded.sweep_at < instant($15) THEN least(known.sweep_at, excluded.sweep_at)
            ELSE coalesce(known.sweep_at, excluded.sweep_at)
        END
)
SELECT row_to_json(answer)::text
FROM (SELECT * FROM kept ORDER BY position) AS answer
