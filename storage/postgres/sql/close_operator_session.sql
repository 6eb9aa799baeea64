-- Ends a session.
DELETE FROM operator_sessions WHERE secret_hash = $1
