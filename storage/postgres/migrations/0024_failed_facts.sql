-- A fact that fails each time it is applied is parked with its error.
ALTER TABLE call_facts
    ADD COLUMN error text,
    ADD CONSTRAINT call_facts_error_check CHECK (error IS NULL OR state = 'parked');

CREATE INDEX call_facts_failed ON call_facts (provider, call_session, position)
    WHERE error IS NOT NULL;
