-- Brings recorded minutes to what the ends of their sessions say ($4 to $6): seconds,
-- micro-credits, free milliseconds. A minute with 0 seconds is removed. Months follow. The rows of
-- the sessions are locked.
WITH given AS (
    SELECT before.*, record.seconds AS new_seconds, record.charged_micros AS new_charged_micros,
        record.free_ms AS new_free_ms
    FROM unnest(
        $1::text[], $2::text[], $3::integer[], $4::integer[], $5::bigint[], $6::bigint[]
    ) AS record (tenant, session_id, minute, seconds, charged_micros, free_ms)
    JOIN usage_tracking AS before USING (tenant, session_id, minute)
), removed AS (
    DELETE FROM usage_tracking AS used
    USING given
    WHERE given.new_seconds = 0
      AND used.tenant = given.tenant
      AND used.session_id = given.session_id
      AND used.minute = given.minute
), changed AS (
    UPDATE usage_tracking AS used SET
        seconds = given.new_seconds,
        charged_micros = given.new_charged_micros,
        free_ms = given.new_free_ms
    FROM given
    WHERE given.new_seconds > 0
      AND used.tenant = given.tenant
      AND used.session_id = given.session_id
      AND used.minute = given.minute
), moved AS MATERIALIZED (
    SELECT
        tenant, user_id, month,
        -(count(*) FILTER (WHERE new_seconds = 0))::integer AS minutes,
        sum(new_seconds - seconds)::bigint AS seconds
    FROM given
    WHERE counts
    GROUP BY tenant, user_id, month
    ORDER BY tenant, user_id, month
)
SELECT move_month(tenant, user_id, month, minutes, seconds) FROM moved
