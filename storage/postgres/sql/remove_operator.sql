-- Removes an operator, with all sessions.
DELETE FROM operators WHERE name = $1
