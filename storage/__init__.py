"""Storage: live state in Redis, the record in Postgres, the way between."""
