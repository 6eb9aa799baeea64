"""Every bound of storage, with its unit in its name.

The bounds that the rules of the exchange need too are in ``protocol.limits``. The relations between
the numbers are asserted at the end, at import: a process in which a change breaks one does not
start.
"""

from typing import Final

from protocol import limits

REDIS_CONNECTIONS_MAX: Final = 32
"""Most connections of one process to Redis, which serves one command at a time anyway."""
REDIS_TIME_FRESH_S: Final = 5.0
"""How long a fast answer outweighs a later slow one about the clock of Redis."""
REDIS_TIME_KNOWN_S: Final = 10.0
"""How long after an answer the clock of Redis counts as known."""
GIVEN_UP_MARGIN_MS: Final = 50
"""A command must not run this close to the end of its process's wait: clocks drift apart."""
OVERDUE_ATTEMPTS_MAX: Final = 2
"""Most attempts at a command that Redis calls too late although it was in time."""
CHANNEL_POLL_S: Final = 15.0
"""Longest single wait for a message of a channel; then the next wait begins."""
CHANNEL_RETRY_S: Final = 0.2
"""Pause after an error on a connection for channels, before it is made again."""
CHANNEL_QUIET_S: Final = 2.0
"""Silence after which a connection for channels is pinged.

After the same time again without an answer, the connection is dropped.
"""
CLUSTER_REDIRECTIONS_MAX: Final = 4
"""Most nodes that one command is sent to in turn: its slot may move twice meanwhile."""
NODES_WITHOUT_SCRIPT_MAX: Final = 1_024
"""Most nodes of which a script remembers that they have lost it.

Beyond that, remembering begins anew: a cluster has no more than 1,000 nodes.
"""
TERMS_SHARED_MAX: Final = 1_024
"""Most terms that sessions of one process share, 900 bytes each.

Beyond that, sharing begins anew.
"""
OUTBOXES_PER_PIPELINE: Final = 16
"""Partitions whose outbox lengths one pipeline asks for: 0.3 ms of the event loop."""
# Redis recognises a spend for this time, and while the spend's record is in the outbox. A later
# repetition is found in the ledger, which is searched first.
SPENDS_REMEMBERED_MS: Final = 600_000
SPENDS_REMEMBERED_MIN: Final = 1_024
"""An account with fewer remembered spends is not searched for old ones."""
ENTRIES_REMEMBERED_MIN: Final = 1_024
"""Entries of money in that Redis remembers for an account, in addition to all that are younger than
``SPENDS_REMEMBERED_MS``."""
HOLD_KEPT_MS: Final = 3_600_000
"""How long Redis keeps a hold that is no longer open."""
CLUSTER_REFRESH_MS: Final = 200
"""Shortest time between two questions to a Redis cluster about who serves which slot."""
MESSAGES_WAITING_MAX: Final = 4_096
"""Most messages of channels that one process has read and not yet taken; the others stay unread."""
CLAIMS_PER_PIPELINE_MAX: Final = 32
"""Most claims in one pipeline: one write of some 15 KiB. The answers are handled in eight turns of
the event loop; on a busy processor, these must not last as long as the deadline."""
ANSWERS_PER_TURN: Final = 4
"""Steps of one pipeline that are encoded, or whose answers are read, in one turn: a millisecond."""
HOLDS_PER_ACCOUNT_MAX: Final = 256
HOLDS_EXPIRED_PER_PASS_MAX: Final = 256
"""Most holds of one partition that are ended before the other partitions have their turn."""
ACCOUNT_IDLE_MS: Final = 24 * 3_600_000
"""A counter that no live session draws on leaves Redis after this time."""
LOST_SESSIONS_AFTER_MS: Final = limits.UNCOVERED_MS_DEFAULT + 10_000
"""After this time from a loss on, no process runs a session that Redis lacks: the process has put
the session back, or has stopped it for lack of a grant."""
START_MS_MAX: Final = 3_600_000
"""The longest time of a start after it has read the session's preparation. Redis keeps note of a
preparation made meanwhile for this time."""
SAMPLES_KEPT: Final = 3_600
"""Samples of the summary, one for each second (PROTOCOL section 4)."""
WATCHED_MS: Final = 5_000
"""How long the interest in rows of live sessions lasts without being renewed."""
ENDED_SESSION_KEPT_MS: Final = 3_600_000
"""How long a session's hash stays in Redis after Postgres is known to have the session's end. A
late join thus gets `session_ended` and the receipt. Before that, the hash stays a day."""
FLUSH_BATCH_RECORDS: Final = 1_000
"""Records of one transaction: 9 ms with unnest (PITFALLS). Ten times as many would hold locks."""
FLUSH_BATCH_RECORDS_CATCHING_UP: Final = 10_000
"""Records of one transaction after an outage of Postgres, when no caller waits for one."""
FLUSH_ACKNOWLEDGED_PER_STEP_MAX: Final = 250
"""Most entries that one atomic step removes from the outbox; Redis is busy for a millisecond."""
FLUSH_READS_PER_TAKEOVER: Final = 32
"""Reads of a busy flusher between two searches for the entries of a dead flusher."""
FLUSH_LAST_READS_MAX: Final = 1_000
"""Most reads of a flusher after it was asked to stop."""
FLUSH_RETRY_S_MIN: Final = 0.1
FLUSH_RETRY_S_MAX: Final = 5.0
"""Longest delay before a failed batch is tried again; it doubles from the shortest."""
FLUSH_CONNECTIONS_MAX: Final = 16
"""Connections of a flusher, which does one thing at a time.

A cancelled read may still hold a connection.
"""
LONE_ENTRY_TRIED_S: Final = 600.0
"""How long a single entry in the outbox is tried before it is rejected."""
REJECTED_ENTRIES_MAX: Final = 10_000
"""Refused entries that each partition keeps until an operator looks at them."""
FLUSH_WAIT_MS: Final = 200
"""Longest wait of a batch for more records: a spend waits for its flush."""
WRITES_WAITING_MAX: Final = 4_096
"""Most spends and holds of one process that wait for Postgres: some seconds of them."""
FLUSH_WRITES_AT_ONCE: Final = 4
"""Writes at once by the flushers of one cluster, each of which reads one partition."""
FLUSH_BLOCK_MS: Final = 5_000
"""How long one XREADGROUP blocks; its client's time-out is longer (PITFALLS)."""
FLUSH_SOCKET_TIMEOUT_MS: Final = 15_000
FLUSH_CLAIM_IDLE_MS: Final = 30_000
"""Entries that a flusher read and did not acknowledge are taken over after this time."""
OUTBOX_ENTRIES_AUDITED_MAX: Final = 10_000
"""An account with more entries on their way is not compared.

The comparison reads its partition's whole outbox.
"""
AUDIT_LOOKS_MAX: Final = 5
"""Most looks of an audit at one account, until the account does not change during a look."""
AUDIT_KEYS_PER_SCAN: Final = 1_000
"""Keys that one SCAN of an audit visits; Redis serves other clients between two scans."""
AUDIT_FINDINGS_MAX: Final = 1_000
"""Most findings of one audit; the next audit finds the rest once these are repaired."""
AUDIT_S_MAX: Final = 3_600
"""Longest time of Postgres to audit the record: the audit reads every minute and entry."""
DATABASE_TIMEOUT_MS: Final = 10_000
DATABASE_CONNECTIONS_MAX: Final = 10
DATABASE_ATTEMPTS_MAX: Final = 3
"""Most attempts at a statement that Postgres certainly rolled back, or that may be repeated."""
IDEMPOTENT_TAKEOVER_MS: Final = 60_000
"""Age of unanswered work under an idempotency key at which its process counts as dead."""
RECOVERY_MS: Final = 3_000
"""Time after a loss in Redis without grants. In these three heartbeats every living process puts
back what it knows."""
ASSERTIONS_PER_BATCH: Final = 128
"""Sessions that one batch puts back: some milliseconds of Redis."""
OUTBOX_ENTRIES_MAX: Final = 1_000_000
"""From this length on, a partition's outbox takes no new sessions, spends and holds: they get
`unavailable`. Running sessions continue, and their use is recorded."""
PAGE_ROWS_MAX: Final = 500
OPERATOR_SESSIONS_MAX: Final = 20
"""Most sessions of cookies of one operator or token's user; a further one ends the oldest."""
CALL_FACTS_READ_MAX: Final = 2_000
"""Most facts of one run that a reader gets: the newest."""
CALL_DEVICES_READ_MAX: Final = 20_000
"""Devices of one run whose last facts a sweep compares with the provider's answer."""
CALL_PARTICIPANTS_READ_MAX: Final = 500
"""Participants of a run that one query reads; a run with more is read in pages."""
REPORT_BATCH_ROWS: Final = 1_000
TASK_CANCELLED_AGAIN_S: Final = 1.0
"""How long a cancelled task may clean up before it is cancelled again."""

# The embedded engines: one keeper process starts, watches and stops each.
ENGINE_START_S_MAX: Final = 60
"""Longest time until an engine is ready: Postgres may have to recover from a crash first."""
ENGINE_KEEPERS_TRIED_MAX: Final = 3
"""Keepers that one process starts, one after another, before it gives up on the engine."""
ENGINE_JOIN_RETRY_S: Final = 5
"""Pause between two attempts to start a keeper for an engine whose keeper has died."""
ENGINE_PROBE_S_MAX: Final = 5
"""Longest wait for an engine's answer whether it is ready; then it is asked again."""
ENGINE_PROBE_PAUSE_S: Final = 0.01
ENGINE_RESTART_S_MIN: Final = 0.1
ENGINE_RESTART_S_MAX: Final = 30
"""Longest delay before an ended engine is started again; the delay doubles from
``ENGINE_RESTART_S_MIN``. After an engine has lived for this time, the doubling begins anew."""
ENGINE_STOP_S_MAX: Final = 30
"""Longest wait for an engine to stop when asked, before it is killed."""
ENGINE_ORPHAN_STOP_S_MAX: Final = 10
"""Longest wait, for each of two signals, for the end of an engine that a dead keeper left."""
ENGINE_SOCKET_PATH_BYTES_MAX: Final = 100
"""Longest path of a Unix socket; the kernel's own limit is 103 to 107, by platform."""
ENGINE_LOG_BYTES_MAX: Final = 1 << 20
"""Size from which a new keeper renames an engine's log and begins another."""
ENGINE_LOG_SHOWN_BYTES: Final = 8_192
"""Bytes from the end of an engine's log that an error quotes."""


# --- Relations -----------------------------------------------------------------------

# One claim's records, with the session's beginning and end, fit a batch.
assert limits.MINUTES_PER_CLAIM_MAX + 2 <= FLUSH_BATCH_RECORDS
assert FLUSH_BATCH_RECORDS <= FLUSH_BATCH_RECORDS_CATCHING_UP
assert FLUSH_BLOCK_MS < FLUSH_SOCKET_TIMEOUT_MS < FLUSH_CLAIM_IDLE_MS
assert DATABASE_TIMEOUT_MS < FLUSH_CLAIM_IDLE_MS
# A hold that has ended is never in Redis without its account (see amend.lua).
assert HOLD_KEPT_MS < ACCOUNT_IDLE_MS
assert FLUSH_RETRY_S_MIN < FLUSH_RETRY_S_MAX < LONE_ENTRY_TRIED_S
# One claim's records are acknowledged in one step, and a batch in a few.
assert FLUSH_ACKNOWLEDGED_PER_STEP_MAX < FLUSH_BATCH_RECORDS
assert REDIS_TIME_FRESH_S < REDIS_TIME_KNOWN_S
assert 2 * GIVEN_UP_MARGIN_MS < limits.REDIS_TIMEOUT_MS
# A dead connection for channels is noticed within one wait for a message.
assert CHANNEL_RETRY_S < 2 * CHANNEL_QUIET_S < CHANNEL_POLL_S
# Work that may still be under way is not taken over.
assert DATABASE_ATTEMPTS_MAX * DATABASE_TIMEOUT_MS < IDEMPOTENT_TAKEOVER_MS
assert ENGINE_PROBE_PAUSE_S < ENGINE_PROBE_S_MAX < ENGINE_START_S_MAX
assert ENGINE_RESTART_S_MIN < ENGINE_RESTART_S_MAX < ENGINE_START_S_MAX
# The end of an earlier engine is part of the time in which the next one starts.
assert 2 * ENGINE_ORPHAN_STOP_S_MAX < ENGINE_START_S_MAX
assert ENGINE_LOG_SHOWN_BYTES < ENGINE_LOG_BYTES_MAX
assert FLUSH_WRITES_AT_ONCE < DATABASE_CONNECTIONS_MAX
