-- One at a time, until the transaction ends: a plan that is put for a call, and what is parked or
-- mapped by the plan before.
SELECT pg_advisory_xact_lock(hashtextextended(concat_ws('/', $1::text, $2::text), 0))
