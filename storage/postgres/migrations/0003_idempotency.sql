-- The answers of requests that must not be done twice.

CREATE TABLE idempotency_keys (
    tenant text NOT NULL,
    scope text NOT NULL,
    key text NOT NULL,
    fingerprint text NOT NULL,
    status smallint,
    response bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (tenant, scope, key),
    CONSTRAINT idempotency_keys_answer_check
        CHECK ((status IS NULL) = (response IS NULL))
);

CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
