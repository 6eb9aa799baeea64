"""Storage: the live state in Redis, the record in Postgres, and the way between."""
