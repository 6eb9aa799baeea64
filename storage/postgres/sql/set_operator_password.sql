-- Sets or takes away an operator's password, and ends the operator's sessions.
WITH changed AS (
    UPDATE operators SET password_hash = $2 WHERE name = $1 RETURNING name
), ended AS (
    DELETE FROM operator_sessions WHERE operator IN (SELECT name FROM changed)
)
SELECT true FROM changed
