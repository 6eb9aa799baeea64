-- Keeps a call's own data for a run whose events did not carry it.
UPDATE call_sessions SET custom = $3::text::jsonb
WHERE provider = $1 AND call_session = $2 AND custom = '{}'
