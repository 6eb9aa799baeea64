"""Every bound of storage, with its unit in its name, in one place.

Those that the rules of the exchange need too are in ``protocol.limits``. The relations between
the numbers are asserted at the end, at import: a change that breaks one never starts.
"""

from typing import Final

from protocol import limits

OUTBOXES_PER_PIPELINE: Final = 16
"""Partitions that are asked for the length of their outbox together: 0.3 ms of the loop."""
# Redis recognises a spend for this time, and while its record is in the outbox; a later one
# is found in the ledger, where it is looked for first.
SPENDS_REMEMBERED_MS: Final = 600_000
SPENDS_REMEMBERED_MIN: Final = 1_024
"""Of one account: with fewer of them none is looked through for old ones."""
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
DATABASE_TIMEOUT_MS: Final = 10_000
DATABASE_CONNECTIONS_MAX: Final = 10
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

# --- Relations -----------------------------------------------------------------------

# One claim's records, the session's beginning and end among them, fit a batch.
assert limits.MINUTES_PER_CLAIM_MAX + 2 <= FLUSH_BATCH_RECORDS
assert FLUSH_BATCH_RECORDS <= FLUSH_BATCH_RECORDS_CATCHING_UP
assert FLUSH_BLOCK_MS < FLUSH_SOCKET_TIMEOUT_MS < FLUSH_CLAIM_IDLE_MS
assert DATABASE_TIMEOUT_MS < FLUSH_CLAIM_IDLE_MS
assert FLUSH_WRITES_AT_ONCE < DATABASE_CONNECTIONS_MAX
