-- For finding, page by page, the live sessions whose clients count for themselves.
CREATE INDEX sessions_reported ON sessions (tenant, session_id)
    WHERE state = 'live' AND is_reported;
