-- Deletes a preparation that came too late: its session runs without it.
DELETE FROM sessions
WHERE tenant = $1 AND session_id = $2 AND state = 'prepared' AND expires_at = instant($3)
