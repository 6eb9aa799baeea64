-- The people who may look at all tenants, or act for them, and what they did. These tables are the
-- installation's. An operator without a password is named by a trusted proxy.
CREATE TABLE operators (
    name text NOT NULL,
    role text NOT NULL,
    password_hash text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT operators_pkey PRIMARY KEY (name),
    CONSTRAINT operators_role_check CHECK (role IN ('read', 'act'))
);

-- The sessions of cookies, by the hash of the cookie's secret. `operator` is null where a token
-- became a cookie: then `scope` is the token's; an operator's role is read where it is needed.
CREATE TABLE operator_sessions (
    secret_hash bytea NOT NULL,
    actor text NOT NULL,
    via text NOT NULL,
    operator text,
    scope text,
    org_id text,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    CONSTRAINT operator_sessions_pkey PRIMARY KEY (secret_hash),
    CONSTRAINT operator_sessions_operator_fkey
        FOREIGN KEY (operator) REFERENCES operators (name) ON DELETE CASCADE,
    CONSTRAINT operator_sessions_via_check CHECK (via IN ('password', 'proxy', 'token')),
    CONSTRAINT operator_sessions_scope_check CHECK ((operator IS NULL) <> (scope IS NULL))
);

CREATE INDEX operator_sessions_of_actor ON operator_sessions (actor, created_at);
CREATE INDEX operator_sessions_by_end ON operator_sessions (expires_at);

-- The operators' log: one row for each intent, written before anything is done. A row of
-- `operator_outcomes` follows; a repeated attempt may add another one, and the newest counts. An
-- intent without an outcome is one whose process died, or whose answer nothing recorded.
CREATE TABLE operator_actions (
    action_id text NOT NULL,
    position bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL,
    actor text NOT NULL,
    via text NOT NULL,
    action text NOT NULL,
    target text NOT NULL,
    tenant text,
    reason text,
    before jsonb,
    request_id text NOT NULL,
    CONSTRAINT operator_actions_pkey PRIMARY KEY (action_id),
    CONSTRAINT operator_actions_position_key UNIQUE (position)
);

CREATE INDEX operator_actions_of_actor ON operator_actions (actor, position);
CREATE INDEX operator_actions_of_target ON operator_actions (target, position);

CREATE TABLE operator_outcomes (
    action_id text NOT NULL,
    position bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL,
    outcome text NOT NULL,
    code text,
    after jsonb,
    CONSTRAINT operator_outcomes_pkey PRIMARY KEY (action_id, position),
    CONSTRAINT operator_outcomes_action_id_fkey
        FOREIGN KEY (action_id) REFERENCES operator_actions (action_id),
    CONSTRAINT operator_outcomes_outcome_check CHECK (outcome IN ('done', 'refused', 'failed'))
);

CREATE FUNCTION refuse_log_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'the log of operators is append-only: % is refused', TG_OP
        USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER refuse_action_change
    BEFORE UPDATE OR DELETE OR TRUNCATE ON operator_actions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_log_change();

CREATE TRIGGER refuse_outcome_change
    BEFORE UPDATE OR DELETE OR TRUNCATE ON operator_outcomes
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_log_change();
