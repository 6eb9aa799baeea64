-- For pages of sessions, newest first: of a user, of a counterpart, of a kind, of a tenant.
CREATE INDEX sessions_newest_of_user ON sessions (tenant, user_id, started_at, session_id);
DROP INDEX sessions_by_user;
CREATE INDEX sessions_newest_of_counterpart
    ON sessions (tenant, counterpart_id, started_at, session_id)
    WHERE counterpart_id IS NOT NULL;
CREATE INDEX sessions_newest_of_kind ON sessions (tenant, kind, started_at, session_id);
CREATE INDEX sessions_newest ON sessions (tenant, started_at, session_id);
