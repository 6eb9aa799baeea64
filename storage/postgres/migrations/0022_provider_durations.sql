-- Both clocks of a call's session, and the entries that bring its charge to the provider's. The
-- session's own figures and minutes stay as our clock had them. A correction is noted here before
-- it is made, so that a process that dies in between leaves it to another: `is_done` says whether
-- it was made.
CREATE TABLE provider_durations (
    tenant text NOT NULL,
    session_id text NOT NULL,
    provider text NOT NULL,
    call_id text NOT NULL,
    call_session text NOT NULL,
    user_id text NOT NULL,
    account_id text NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL,
    elapsed_ms bigint NOT NULL,
    facts_ms bigint NOT NULL,
    provider_ms bigint,
    asked_ms bigint,
    reason text NOT NULL,
    uncollected_ms bigint NOT NULL DEFAULT 0,
    uncollected_micros bigint NOT NULL DEFAULT 0,
    uncollected_minutes integer NOT NULL DEFAULT 0,
    stretches jsonb NOT NULL,
    corrections jsonb NOT NULL DEFAULT '[]',
    version integer NOT NULL DEFAULT 1,
    settled_at timestamptz NOT NULL,
    CONSTRAINT provider_durations_pkey PRIMARY KEY (tenant, session_id),
    CONSTRAINT provider_durations_check CHECK (
        started_at <= ended_at AND elapsed_ms >= 0 AND facts_ms >= 0 AND provider_ms >= 0
        AND asked_ms >= 0 AND uncollected_ms >= 0 AND uncollected_micros >= 0
    )
);

-- For reports by day, of a tenant or of all.
CREATE INDEX provider_durations_by_start ON provider_durations (tenant, started_at, session_id);
CREATE INDEX provider_durations_newest ON provider_durations (started_at, tenant, session_id);
-- For the call of a session.
CREATE INDEX call_participants_of_session ON call_participants (tenant, session_id)
    WHERE session_id IS NOT NULL;
