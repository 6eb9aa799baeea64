-- Grants that expired before an instant ($1) and are not used up, in the order of their
-- expiry, after a position in that order ($2 to $5; null: from the first).
SELECT row_to_json(answer)::text
FROM (
    SELECT
        tenant, account_id, entry_id, amount_micros, used_micros, expired_micros, priority,
        epoch_ms(expires_at) AS expires_at, epoch_ms(granted_at) AS granted_at, name
    FROM credit_grants
    WHERE NOT is_exhausted
      AND expires_at < instant($1)
      AND (
          $2::bigint IS NULL
          OR (expires_at, tenant, account_id, entry_id)
              > (instant($2), $3::text, $4::text, $5::text)
      )
    ORDER BY expires_at, tenant, account_id, entry_id
    LIMIT $6
) AS answer
