-- What call providers say about calls. The keys of these tables begin with the provider: a fact
-- arrives before it is known whose call it is, so these tables are the installation's.

-- The inbox: one row for each fact. A row is written before the provider gets its answer, and is
-- applied afterwards. A process that applies a row has until `due_at`; then any process may take
-- the row over. `body` is the provider's signed body, with the first fact that was made of it.
CREATE TABLE call_facts (
    provider text NOT NULL,
    fact_key text NOT NULL,
    position bigint GENERATED ALWAYS AS IDENTITY,
    call_id text NOT NULL,
    call_session text NOT NULL,
    participant text,
    fact jsonb NOT NULL,
    body bytea,
    state text NOT NULL DEFAULT 'waiting',
    attempts integer NOT NULL DEFAULT 0,
    received_at timestamptz NOT NULL,
    due_at timestamptz NOT NULL,
    applied_at timestamptz,
    CONSTRAINT call_facts_pkey PRIMARY KEY (provider, fact_key),
    CONSTRAINT call_facts_state_check CHECK (state IN ('waiting', 'parked', 'applied')),
    CONSTRAINT call_facts_applied_check CHECK ((state = 'applied') = (applied_at IS NOT NULL))
);

CREATE INDEX call_facts_of_session ON call_facts (provider, call_session, position);
CREATE INDEX call_facts_due ON call_facts (due_at) WHERE state = 'waiting';
CREATE INDEX call_facts_parked ON call_facts (provider, call_id) WHERE state = 'parked';
-- For deletion by age, and for replays.
CREATE INDEX call_facts_by_age ON call_facts (received_at);

-- Whose call it is, as a backend said. `version` rises with each change.
CREATE TABLE calls (
    provider text NOT NULL,
    call_id text NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    plan jsonb NOT NULL,
    changed_at timestamptz NOT NULL,
    CONSTRAINT calls_pkey PRIMARY KEY (provider, call_id)
);

-- For calls of an id that a request names without a provider.
CREATE INDEX calls_by_id ON calls (call_id);

-- The runs of calls. `seen_at` is when the first fact of a run came in, and never changes;
-- `ended_fact` is kept for participants who become known after the end. A run is swept at
-- `sweep_at`, and no more when that is null.
CREATE TABLE call_sessions (
    provider text NOT NULL,
    call_session text NOT NULL,
    call_id text NOT NULL,
    rest_name text NOT NULL DEFAULT '',
    custom jsonb NOT NULL DEFAULT '{}',
    seen_at timestamptz NOT NULL,
    started_at timestamptz,
    ended_at timestamptz,
    ended_fact jsonb,
    is_parked boolean NOT NULL DEFAULT false,
    sweep_at timestamptz,
    sweep_failures integer NOT NULL DEFAULT 0,
    swept_at timestamptz,
    CONSTRAINT call_sessions_pkey PRIMARY KEY (provider, call_session),
    CONSTRAINT call_sessions_ended_check CHECK ((ended_at IS NULL) = (ended_fact IS NULL))
);

CREATE INDEX call_sessions_of_call ON call_sessions (call_id, seen_at);
CREATE INDEX call_sessions_due ON call_sessions (sweep_at) WHERE sweep_at IS NOT NULL;
-- For pages of calls, newest first: of all states, and of each.
CREATE INDEX call_sessions_newest ON call_sessions (seen_at, provider, call_session);
CREATE INDEX call_sessions_parked ON call_sessions (seen_at, provider, call_session)
    WHERE is_parked;
CREATE INDEX call_sessions_active ON call_sessions (seen_at, provider, call_session)
    WHERE NOT is_parked AND ended_at IS NULL;
CREATE INDEX call_sessions_ended ON call_sessions (seen_at, provider, call_session)
    WHERE NOT is_parked AND ended_at IS NOT NULL;

-- Who is in a run, by the provider's name. A participant who is mapped keeps the mapping: a
-- session does not change its payer. `seen_at` is that of the run.
CREATE TABLE call_participants (
    provider text NOT NULL,
    call_session text NOT NULL,
    participant text NOT NULL,
    call_id text NOT NULL,
    seen_at timestamptz NOT NULL,
    parked_because text,
    tenant text,
    session_id text,
    user_id text,
    org_id text,
    mapping jsonb,
    CONSTRAINT call_participants_pkey PRIMARY KEY (provider, call_session, participant),
    CONSTRAINT call_participants_mapped_check CHECK (
        (parked_because IS NULL)
        = (tenant IS NOT NULL AND session_id IS NOT NULL AND user_id IS NOT NULL
           AND mapping IS NOT NULL)
    )
);

-- For the calls of a user, newest first.
CREATE INDEX call_participants_of_user
    ON call_participants (user_id, seen_at, provider, call_session)
    WHERE user_id IS NOT NULL;
