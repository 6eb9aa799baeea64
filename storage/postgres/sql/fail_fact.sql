-- Parks a fact that has failed too often ($3 attempts), with its error ($4), and lists its run as
-- parked. Answers whether it is parked: another process may have taken it over.
WITH failed AS (
    UPDATE call_facts SET state = 'parked', error = $4
    WHERE provider = $1 AND fact_key = $2 AND state = 'waiting' AND attempts = $3
    RETURNING call_session
), run AS (
    UPDATE call_sessions AS run SET is_parked = true
    FROM failed
    WHERE run.provider = $1 AND run.call_session = failed.call_session
)
SELECT EXISTS (SELECT FROM failed)
