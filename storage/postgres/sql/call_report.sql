-- Both clocks of every call's session of a tenant (null: of all) that began between two days, both
-- included, by the calendar of its organisation. See usage_report.sql.
SELECT
    substring(duration.tenant FROM '^org:(.*)$') AS org_id, duration.user_id, account_id,
    session_id, provider, call_id, call_session,
    to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS started_at,
    (started_at AT TIME ZONE coalesce(organization.timezone, 'UTC'))::date::text AS day,
    elapsed_ms, facts_ms, provider_ms, reason,
    made.micros AS corrected_micros, made.minutes::integer AS corrected_minutes,
    uncollected_ms, uncollected_micros
FROM provider_durations AS duration
LEFT JOIN organizations AS organization ON organization.tenant = duration.tenant
CROSS JOIN LATERAL (
    SELECT
        coalesce(sum((one ->> 'credits_micros')::bigint), 0)::bigint AS micros,
        coalesce(sum((one ->> 'minutes')::integer), 0) AS minutes
    FROM jsonb_array_elements(corrections) AS one
    WHERE (one ->> 'is_done')::boolean
) AS made
WHERE ($1::text IS NULL OR duration.tenant = $1)
  AND started_at >= ($2::date - 1)::timestamp AT TIME ZONE 'UTC'
  AND started_at < ($3::date + 2)::timestamp AT TIME ZONE 'UTC'
  AND (started_at AT TIME ZONE coalesce(organization.timezone, 'UTC'))::date
      BETWEEN $2::date AND $3::date
ORDER BY duration.tenant, started_at, session_id
