-- Every minute of a tenant (null: of all) that began between two days, both included, by the
-- calendar of its organisation. A cursor reads it in the order of an index. The bounds on
-- started_at let that index help; they are wider by a day, because no time zone is a day away from
-- UTC.
SELECT
    used.org_id, used.user_id, used.account_id, used.session_id, used.kind,
    used.counterpart_id, used.minute,
    to_char(used.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS started_at,
    (used.started_at AT TIME ZONE coalesce(organization.timezone, 'UTC'))::date::text AS day,
    used.month::text AS month,
    used.seconds, used.counts, used.charged_micros, used.free_ms
FROM usage_tracking AS used
LEFT JOIN organizations AS organization ON organization.tenant = used.tenant
WHERE ($1::text IS NULL OR used.tenant = $1)
  AND used.started_at >= ($2::date - 1)::timestamp AT TIME ZONE 'UTC'
  AND used.started_at < ($3::date + 2)::timestamp AT TIME ZONE 'UTC'
  AND (used.started_at AT TIME ZONE coalesce(organization.timezone, 'UTC'))::date
      BETWEEN $2::date AND $3::date
ORDER BY used.tenant, used.started_at, used.session_id, used.minute
