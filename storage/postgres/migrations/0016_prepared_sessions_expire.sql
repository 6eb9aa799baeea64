-- A prepared session may be started until an instant. Those of before get a day from now.
ALTER TABLE sessions ADD COLUMN expires_at timestamptz;
UPDATE sessions SET expires_at = now() + interval '1 day' WHERE state = 'prepared';
ALTER TABLE sessions ADD CONSTRAINT sessions_prepared_check
    CHECK (state <> 'prepared' OR expires_at IS NOT NULL);
