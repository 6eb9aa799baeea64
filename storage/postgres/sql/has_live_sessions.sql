-- Whether any session is live in the record.
SELECT EXISTS (SELECT FROM sessions WHERE state = 'live')
