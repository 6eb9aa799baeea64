-- Whether any session is running, as far as the record knows.
SELECT EXISTS (SELECT FROM sessions WHERE state = 'live')
