"""Every bound of storage, with its unit in its name, in one place.

Those that the rules of the exchange need too are in ``protocol.limits``. The relations between
the numbers are asserted at the end, at import: a change that breaks one never starts.
"""

from typing import Final

from protocol import limits

REDIS_CONNECTIONS_MAX: Final = 32
"""Connections of one process to Redis, which serves one command at a time anyway."""
CHANNEL_POLL_S: Final = 15.0
"""Longest single wait for a message of a channel; then the next wait begins."""
CHANNEL_RETRY_S: Final = 0.2
"""Pause after an error on a connection for channels, before it is made again."""
CHANNEL_QUIET_S: Final = 2.0
"""Silence after which a connection for channels is pinged; after as much again it is dropped."""
CLUSTER_REDIRECTIONS_MAX: Final = 4
"""Nodes that one command is sent to in turn: its slot may move twice while it is on its way."""
TERMS_SHARED_MAX: Final = 1_024
"""Terms that sessions of one process share, 900 bytes each; with more, sharing begins anew."""
OUTBOXES_PER_PIPELINE: Final = 16
"""Partitions that are asked for the length of their outbox together: 0.3 ms of the loop."""
# Redis recognises a spend for this time, and while its record is in the outbox; a later one
# is found in the ledger, where it is looked for first.
SPENDS_REMEMBERED_MS: Final = 600_000
SPENDS_REMEMBERED_MIN: Final = 1_024
"""Of one account: with fewer of them none is looked through for old ones."""
ENTRIES_REMEMBERED_MIN: Final = 1_024
"""Entries of money in that an account in Redis remembers to have taken, besides all that are
younger than ``SPENDS_REMEMBERED_MS``."""
HOLD_KEPT_MS: Final = 3_600_000
"""How long Redis keeps a hold that is no longer open."""
CLUSTER_REFRESH_MS: Final = 200
"""Of a cluster of Redis it is asked no more often who has what."""
MESSAGES_WAITING_MAX: Final = 4_096
"""Messages of channels that one process has read and not taken yet; the rest waits unread."""
CLAIMS_PER_PIPELINE_MAX: Final = 32
"""Claims that fall due together: one write of some 15 KiB. The answers are taken in eight turns of
the loop, which must not last as long as the deadline where others keep the processor busy."""
ANSWERS_PER_TURN: Final = 4
"""Steps of one pipeline that are encoded, or whose answers are read, at once: a millisecond."""
HOLDS_PER_ACCOUNT_MAX: Final = 256
HOLDS_EXPIRED_PER_PASS_MAX: Final = 256
"""Holds of one partition that are ended between two looks at the others."""
ACCOUNT_IDLE_MS: Final = 24 * 3_600_000
"""A counter that no live session draws on leaves Redis after this time."""
LOST_SESSIONS_AFTER_MS: Final = limits.UNCOVERED_MS_DEFAULT + 10_000
"""From this time after a loss no process runs a session that Redis does not have: the process
has put it back, or has stopped it for want of a grant."""
START_MS_MAX: Final = 3_600_000
"""The longest that a start can be under way that has looked for the session's preparation: a
preparation that was made meanwhile is noted in Redis for this time."""
ENDED_SESSION_KEPT_MS: Final = 3_600_000
"""A session's hash is kept for this time after the process that ended it hears that
Postgres knows of the end, so that a late join hears `session_ended` and its receipt. Before that
it stays a day."""
FLUSH_BATCH_RECORDS: Final = 1_000
"""One transaction: 9 ms with unnest (PITFALLS), and ten times as many would hold locks."""
FLUSH_BATCH_RECORDS_CATCHING_UP: Final = 10_000
"""After an outage of Postgres, when no caller waits for a single batch."""
FLUSH_ACKNOWLEDGED_PER_STEP_MAX: Final = 250
"""Entries that one atomic step takes off the outbox: it keeps Redis busy for a millisecond."""
FLUSH_READS_PER_TAKEOVER: Final = 32
"""Reads of a flusher under load between two looks for the entries of a dead one."""
FLUSH_LAST_READS_MAX: Final = 1_000
"""Reads that a flusher makes at most after it was asked to stop."""
FLUSH_RETRY_S_MIN: Final = 0.1
FLUSH_RETRY_S_MAX: Final = 5.0
"""Delay before a batch that failed is tried again, doubling between the two."""
FLUSH_CONNECTIONS_MAX: Final = 16
"""Of a flusher, which does one thing at a time; a cancelled one may still hold a connection."""
LONE_ENTRY_TRIED_S: Final = 600.0
"""Time for which an entry that is alone in the outbox is tried, before it is rejected."""
REJECTED_ENTRIES_MAX: Final = 10_000
"""Entries that Postgres refused, kept for each partition until an operator looks at them."""
FLUSH_WAIT_MS: Final = 200
"""The longest that a batch waits for more records: a spend waits for its flush."""
WRITES_WAITING_MAX: Final = 4_096
"""Spends and holds of one process that wait for Postgres: some seconds of them."""
FLUSH_WRITES_AT_ONCE: Final = 4
"""Of one flusher of a cluster, which reads each partition by itself."""
FLUSH_BLOCK_MS: Final = 5_000
"""How long one XREADGROUP blocks; its client's time-out is larger (PITFALLS)."""
FLUSH_SOCKET_TIMEOUT_MS: Final = 15_000
FLUSH_CLAIM_IDLE_MS: Final = 30_000
"""Entries that a flusher read and did not acknowledge are taken over after this time."""
OUTBOX_ENTRIES_AUDITED_MAX: Final = 10_000
"""An account with more entries on their way is not compared: its whole outbox is read for that."""
AUDIT_LOOKS_MAX: Final = 5
"""Looks of an audit at one account, until it stands still for the length of a look."""
AUDIT_KEYS_PER_SCAN: Final = 1_000
"""Keys that one SCAN of an audit goes through; Redis serves others in between."""
AUDIT_FINDINGS_MAX: Final = 1_000
"""Findings of one audit; the rest is found once these are mended."""
AUDIT_S_MAX: Final = 3_600
"""Time that Postgres may take to audit the record: it reads every minute and entry."""
DATABASE_TIMEOUT_MS: Final = 10_000
DATABASE_CONNECTIONS_MAX: Final = 10
DATABASE_ATTEMPTS_MAX: Final = 3
"""Attempts at a statement that Postgres rolled back for certain, or that may be done twice."""
IDEMPOTENT_TAKEOVER_MS: Final = 60_000
"""Age of work under an idempotency key, without an answer, from which its process is dead."""
RECOVERY_MS: Final = 3_000
"""After a loss in Redis nothing is granted for this time, in which every living process puts
back what it knows: three beats."""
ASSERTIONS_PER_BATCH: Final = 128
"""Sessions that are put back at once: some milliseconds of Redis."""
OUTBOX_ENTRIES_MAX: Final = 1_000_000
"""From here on a partition's outbox takes no new sessions, spends and holds, which are answered
`unavailable`; those that run go on, and what they use is written down."""
PAGE_ROWS_MAX: Final = 500
REPORT_BATCH_ROWS: Final = 1_000
TASK_CANCELLED_AGAIN_S: Final = 1.0
"""Time in which a cancelled task cleans up, before it is cancelled again."""

# Of the embedded engines, which one keeper process each starts, watches and stops.
ENGINE_START_S_MAX: Final = 60
"""Time in which an engine is ready: Postgres may have to recover from a crash first."""
ENGINE_KEEPERS_TRIED_MAX: Final = 3
"""Keepers that one process starts, one after the other, before the engine does not start."""
ENGINE_JOIN_RETRY_S: Final = 5
"""Pause between two attempts to start a keeper for an engine whose keeper has died."""
ENGINE_PROBE_S_MAX: Final = 5
"""Time in which an engine answers whether it is ready; then it is asked anew."""
ENGINE_PROBE_PAUSE_S: Final = 0.01
ENGINE_RESTART_S_MIN: Final = 0.1
ENGINE_RESTART_S_MAX: Final = 30
"""Delay before an engine that ended is started again, doubling between the two; after a life of
the latter the doubling begins anew."""
ENGINE_STOP_S_MAX: Final = 30
"""Time in which an engine ends when asked to, before it is killed."""
ENGINE_ORPHAN_STOP_S_MAX: Final = 10
"""Time in which an engine ends that a dead keeper left, for each of two signals."""
ENGINE_SOCKET_PATH_BYTES_MAX: Final = 100
"""Longest path of a Unix socket; the kernel's own limit is 103 to 107, by platform."""
ENGINE_LOG_BYTES_MAX: Final = 1 << 20
"""Size from which a new keeper puts an engine's log aside and begins another."""
ENGINE_LOG_SHOWN_BYTES: Final = 8_192
"""The end of an engine's log that an error quotes from."""


# --- Relations -----------------------------------------------------------------------

# One claim's records, the session's beginning and end among them, fit a batch.
assert limits.MINUTES_PER_CLAIM_MAX + 2 <= FLUSH_BATCH_RECORDS
assert FLUSH_BATCH_RECORDS <= FLUSH_BATCH_RECORDS_CATCHING_UP
assert FLUSH_BLOCK_MS < FLUSH_SOCKET_TIMEOUT_MS < FLUSH_CLAIM_IDLE_MS
assert DATABASE_TIMEOUT_MS < FLUSH_CLAIM_IDLE_MS
assert FLUSH_RETRY_S_MIN < FLUSH_RETRY_S_MAX < LONE_ENTRY_TRIED_S
# One claim's records are acknowledged in one step, and a batch in a few.
assert FLUSH_ACKNOWLEDGED_PER_STEP_MAX < FLUSH_BATCH_RECORDS
# A dead connection for channels is noticed within one wait for a message.
assert CHANNEL_RETRY_S < 2 * CHANNEL_QUIET_S < CHANNEL_POLL_S
# Work that may still be under way is not taken over.
assert DATABASE_ATTEMPTS_MAX * DATABASE_TIMEOUT_MS < IDEMPOTENT_TAKEOVER_MS
assert ENGINE_PROBE_PAUSE_S < ENGINE_PROBE_S_MAX < ENGINE_START_S_MAX
assert ENGINE_RESTART_S_MIN < ENGINE_RESTART_S_MAX < ENGINE_START_S_MAX
# What an earlier engine takes to end is part of the time in which the next one starts.
assert 2 * ENGINE_ORPHAN_STOP_S_MAX < ENGINE_START_S_MAX
assert ENGINE_LOG_SHOWN_BYTES < ENGINE_LOG_BYTES_MAX
assert FLUSH_WRITES_AT_ONCE < DATABASE_CONNECTIONS_MAX
