-- What a cold account is loaded with, and which sessions nobody runs any more: those that
-- have not ended, and those that have just ended, without looking at all that ever were.
CREATE INDEX sessions_by_account ON sessions (tenant, account_id, ended_at);
CREATE INDEX sessions_live ON sessions (tenant, session_id) WHERE state = 'live';
-- What Redis may lack after it lost its last writes.
CREATE INDEX credit_ledger_recent ON credit_ledger (created_at) WHERE entry_kind <> 'burn';
