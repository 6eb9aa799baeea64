"""Every bound of the server, with its unit in its name.

Bounds that lower floors also need are in ``protocol.limits`` and ``storage.limits``. The end of
this file asserts the relations between the numbers at import: a process with a change that breaks
one does not start.
"""

from typing import Final

from protocol import limits
from storage import limits as storage_limits

MONTHLY_HOURS_MAX: Final = 1_000_000
"""An organisation's month: 1,344 members who never sleep."""
# A message is at most 16 KiB and needs no fragments; browsers send none. A few fragments are
# allowed for proxies that split messages; millions of empty fragments (PITFALLS) are not.
FRAGMENTS_PER_MESSAGE_MAX: Final = 16
TOKEN_LISTED_MAX: Final = 64
"""Most ids in each of a token's claims `sessions`, `kinds` and `counterparts`."""
IDEMPOTENCY_KEY_CHARACTERS_MAX: Final = 255
IDEMPOTENT_WORK_MS: Final = 30_000
"""Longest work under one idempotency key: much shorter than the time after which another request
takes the work for dead and does it again."""
IDEMPOTENCY_KEPT_MS: Final = 24 * 3_600_000
IDEMPOTENT_RETRY_AFTER_S: Final = 1
"""`Retry-After` for a key whose request is in progress: the work takes milliseconds."""
IDEMPOTENCY_FORGET_INTERVAL_S: Final = 600
"""Interval at which expired idempotency keys are deleted."""
FORGOTTEN_KEYS_PER_BATCH: Final = 1_000
"""Keys that one statement deletes; other statements run between two batches."""
# Room for a token of 8 KiB in a header, and for the cookies of other software on the site.
REQUEST_HEAD_BYTES_MAX: Final = 32 * 1024
REQUEST_HEADERS_MAX: Final = 100
PREFLIGHT_KEPT_S: Final = 600
"""Time for which browsers cache the answer to a preflight: after it they see new origins."""
BODY_BYTES_MAX: Final = 64 * 1024
"""Largest body of an HTTP request to the product's own API."""
PING_INTERVAL_MS: Final = 10_000  # PROTOCOL
PONG_TIMEOUT_MS: Final = 10_000  # PROTOCOL: a socket is dead ten seconds after a ping
TICK_SPACING_PERCENT: Final = 90
"""Least counted time between two ticks, as a percentage of the tick interval, because timers are
late."""
PROBE_SPACING_MS: Final = 100
"""Least time between two probes of one socket, for any number of sessions on it."""
PROOF_ASKED_MS: Final = 1_000
"""Least time between two requests for a session's proof of life from a process that has only
observers of the session to the other processes."""
AUTH_TIMEOUT_MS: Final = 10_000  # PROTOCOL: 4501
WRITE_BUFFER_SKIP_BYTES: Final = 64 * 1024  # DESIGN: above it ticks are skipped
WRITE_UNSENT_BYTES: Final = 16 * 1024
"""Most bytes that the kernel buffers for a connection beyond what the peer can receive."""
WRITE_BUFFER_CLOSE_BYTES: Final = 1024 * 1024  # DESIGN: above it 4001
# A peer that reads nothing never empties the buffer, and close() would wait without end. Therefore
# the transport is aborted this long after it paused or after the close was sent.
SLOW_PEER_ABORT_MS: Final = 5_000
CONNECTION_LOOK_S: Final = 1.0
"""Interval of the checks of all connections: a passed deadline is found at most this late."""
ACCEPT_QUEUE_SOCKETS: Final = 2_048
"""Length of the listen queue; uvicorn uses the same."""
# One socket carries the open chats of one application, not a fleet. After a reconnect a snapshot of
# each session must fit into the write buffer.
SESSIONS_PER_SOCKET_MAX: Final = 64
SOCKETS_PER_SESSION_MAX: Final = 16
"""Per process: browsers and tabs of the session's own user that keep the session alive."""
OBSERVERS_PER_SESSION_MAX: Final = 16
"""Per process: sockets that observe a session. When all places are taken, the session's own user
takes an observer's place."""
SOCKETS_PER_USER_MAX: Final = 32
"""Per process: tabs and devices of one user; one more is closed with 4503."""
# Per process. Offices and mobile networks share one address, so the bound is wide; it keeps one
# host from taking all descriptors.
SOCKETS_PER_ADDRESS_MAX: Final = 4_096
REQUEST_HEAD_MS: Final = 10_000
"""From the connection, or a request's first byte, to the end of its head: the same time as for
`auth`."""
REQUEST_BODY_MS: Final = 30_000
"""From a request's head to the end of its body: enough for 64 KiB over the worst mobile network."""
RETRY_AFTER_S_MAX: Final = 3_600
"""Largest `Retry-After`; the problem document has the true time when it is later."""
KEEP_ALIVE_MS: Final = 5_000
"""Idle keep-alive timeout, after an answer."""
LINGER_MS: Final = 2_000
"""Time for which a refused connection is still read, so that no reset overtakes the answer."""
LINGERING_MAX: Final = 64
"""Refused connections that are read at the same time; any more are closed at once."""
REQUESTS_PIPELINED_MAX: Final = 8
"""Most requests that wait for the answer to an earlier one on their connection. Browsers send none.
"""
# Descriptors for Redis, Postgres, listeners and files, which client sockets must leave free.
DESCRIPTORS_RESERVED: Final = 128
DESCRIPTORS_WANTED: Final = 65_536
"""Value to which RLIMIT_NOFILE is raised, as far as its hard limit allows."""
# Rate of a socket, and of a user over HTTP. A page makes a few requests when it loads and then
# almost none. The burst lets one socket start all its sessions after a reconnect.
REQUESTS_PER_SECOND: Final = 20
REQUESTS_BURST: Final = 100
USER_REQUESTS_PER_SECOND: Final = 60
USER_REQUESTS_BURST: Final = 640
"""Rate of a user over all sockets of one process: ten sockets can start all their sessions after a
reconnect."""
STARTS_PER_MINUTE: Final = 60
STARTS_BURST: Final = 128
"""New sessions of a user at one process: two full sockets of them at once, then one a second. Each
session takes 4 KB in Redis until an hour after its end is in Postgres."""
REQUEST_USERS_MAX: Final = 65_536
"""Users whose requests, or starts, one process counts; the user who was silent longest is forgotten
first."""
# A socket gets this many `rate_limited` answers beyond its burst and is then closed with 4502,
# because an answer costs work too.
REFUSALS_PER_SOCKET_MAX: Final = 200
# Bad tokens and API keys from one address; the number of good ones is not limited.
AUTH_FAILURES_PER_ADDRESS_PER_MINUTE: Final = 60
AUTH_FAILURE_ADDRESSES_MAX: Final = 65_536
"""Addresses whose bad guesses one minute counts; when there are more, all counts restart at zero.
"""
SUSPECT_CHECK_MS: Final = 2
"""Time between two signature checks for addresses that have used up their guesses. A check takes
0.1 ms, so guessing takes at most a twentieth of the loop."""
SUSPECT_CHECKS_WAITING_MAX: Final = 256
"""Tokens of one such address that wait for their check. They wait at most half a second when no
other address waits; when there are more, the oldest is refused and must be sent again."""
GOOD_TOKENS_REMEMBERED_MAX: Final = 16_384
"""Tokens that were good before and do not wait for a check: a hash of 32 bytes each."""
ORIGINS_REPORTED_MAX: Final = 64
"""Refused origins that the log names, each once."""
ORIGIN_CHARACTERS_SHOWN: Final = 200
PROXIES_REPORTED_MAX: Final = 16
"""Untrusted peers with ``X-Forwarded-For`` that the log names, each once."""
INBOX_MESSAGES_MAX: Final = 32
"""Messages of one socket that wait for the application; at this number reading pauses."""
STREAM_POSTS_WAITING_MAX: Final = 4_096
"""Requests that one process has passed on to the processes of their event streams, and that wait
for the answer."""
STREAM_SECRET_BYTES: Final = 18
"""Random bytes in the id of an event stream: 24 characters."""
SLICE_BYTES: Final = 1024
"""Bytes that the frame parser gets at once: at most 170 frames, when all of them are empty."""
FRAMES_PER_TURN: Final = 64
"""Frames of one peer before other peers have their turn: a third of a millisecond."""
SOCKETS_PER_TURN: Final = 16
"""Sockets that one turn of the loop reads or closes. A socket whose pong releases a tick takes 0.1
ms."""
CONTROL_FRAMES_MAX: Final = 256
"""Pings and pongs of one peer in ``CONTROL_WINDOW_MS``. An honest peer sends a few."""
CONTROL_WINDOW_MS: Final = 10_000
DRAIN_SPREAD_MS: Final = 10_000
"""Longest time over which a draining process spreads the reconnects of its sockets."""
# A process needs a millisecond to accept a socket and join its session. A few clients need not wait
# for each other.
DRAIN_SOCKETS_PER_SECOND: Final = 500
DRAIN_LEFT_MS: Final = 2_000
"""Time after the spread in which clients may close their sockets; then the process closes them."""
DRAIN_BATCH_SOCKETS: Final = 256
"""Sockets that are asked to reconnect between two looks at the clock."""
SETTLE_MS: Final = 5_000
"""How long a stopping process waits for the steps of its sessions."""
REQUESTS_LEFT_MS: Final = 5_000
"""How long a stopping process waits for requests that it is answering."""
WORKERS_MAX: Final = 64
"""Most processes of one ``web --workers``: a machine with more cores has a proxy in front."""
WORKER_STOP_MS: Final = 35_000
"""Time that a process has to stop when asked; then it is killed."""
WORKER_RESTART_MS_MIN: Final = 100
WORKER_RESTART_MS_MAX: Final = 10_000
"""Delay before a process that died is started again; it doubles from MIN to MAX."""
WORKER_PROVEN_MS: Final = 30_000
"""Age at which a process is proven: the doubling of the delay starts again from MIN."""
REPLAYED_ENDS_MAX: Final = 65_536
"""Ends of sessions in outboxes that wait to be put back into Redis, at most, at one process."""
ENGINE_HEALTH_KEPT_MS: Final = 1_000
"""Age up to which `/readyz` and `/metrics` share one check of Redis and Postgres."""
SCRAPES_MAX: Final = 16
"""Simultaneous requests on the port for health and metrics."""
METRICS_PORT_RETRY_S: Final = 0.2
"""Pause before the next attempt to bind a port for health and metrics that is in use."""
FAILURES_LOGGED_PER_SECOND_MAX: Final = 20
"""Failures that are logged with a traceback; the next line counts the rest. A bug in every tick of
ten thousand sessions would otherwise delay all of them by its log."""
LOG_FIELD_DEPTH_MAX: Final = 8
"""Levels of a log event's fields that are searched for secrets; deeper levels are cut off."""
PRESENCE_BEAT_MS: Final = 1_000  # DESIGN: a process proves its life
RECONCILE_BEATS: Final = 60
"""Heartbeats between two searches for sessions that only Redis, or only the process, lists."""
BEAT_LOOK_PAUSE_S: Final = 0.02
"""Pause between two looks for the heartbeats that other processes were asked for."""
BEAT_PROMPT_MS: Final = 100
"""Delay up to which a heartbeat is prompt, by its sender's estimate of the clock of Redis.

A later heartbeat was on its way, and its cluster time is equally old; or the clock of Redis was
stepped. The next heartbeat decides which.
"""
BEAT_LATE_MS_MAX: Final = 60_000
"""Longest delay of a heartbeat, where the clock of the machine that starts confirms it."""
CLOCK_STEADY_MS: Final = 1
"""Two clocks agree on the length of a pause to within this, unless one of them is stepped."""
CLOCK_NUDGE_MS_MAX: Final = 0.05
"""Most that one heartbeat (one a second) moves a clock's offset: 50 parts in a million."""
CLOCK_SLEW_MS_MAX: Final = 5.0
"""Most that one heartbeat moves an offset that a slow answer had set. Half a second is corrected in
two minutes, and a bill is off by 5 ms a second meanwhile."""
CLOCK_DRIFT_MS_MAX: Final = 250
"""Largest difference of two clocks that counts as drift; a larger one means that a wall clock was
stepped. An answer that took longer than this proves nothing about the clock."""
STALL_LOOK_S: Final = 0.25
"""Interval at which a process notes that it is awake."""
STOOD_STILL_MS: Final = 1_000
"""Length of a stall. After a longer one, a process takes no message that waited in its sockets for
a present proof of life. A turn of its loop takes some 10 ms."""
SETTLED_READS_MAX: Final = 4
"""Readings of a dead process's session, each after another step of this process."""
SWEEP_BATCH_SESSIONS: Final = 256
"""Sessions that one atomic step of a sweep detaches; Redis serves no other command meanwhile."""
# How long an HTTP request waits for a session's step: longer than a claim and its repetition.
REQUEST_TIMEOUT_MS: Final = 5_000
LOADS_PER_STEP_MAX: Final = 4
"""Times that one step may load what is missing in Redis: the account, months and free time, and
once more for a race."""
STEPS_MENDED_AT_ONCE_MAX: Final = 16
"""Steps of one batch that are mended concurrently: half of the connections to Redis."""
UNANSWERED_STEPS_KEPT_MAX: Final = 32
"""Unanswered steps that a session remembers; all of them start from one version."""
HEARTBEAT_SESSIONS_MAX: Final = 65_536
"""Sessions of one process that HTTP heartbeats keep alive."""
SILENCES_MAX: Final = 65_536
"""Sessions with reported minutes whose silence one process watches; the sweep finds the others."""
HEARTBEAT_PROOF_MS: Final = 75_000  # PROTOCOL: an HTTP proof of life
HIDDEN_TIMER_MS: Final = 60_000
"""Interval at which browsers run the timers of a hidden tab."""
UNCOVERED_MS_MAX: Final = 3_600_000
"""An hour of debt without Redis is more than anyone should want to collect."""
CLAIM_RETRY_MS_MIN: Final = 100
CLAIM_RETRY_MS_MAX: Final = 2_000
"""Delay before a failed claim is made again; it doubles from MIN to MAX."""
CLAIM_PIPELINES_MAX: Final = 4
"""Pipelines on their way at the same time: Redis finishes them long before their deadline."""
STOP_LATENESS_MS_P99: Final = 10  # DESIGN: the promise
TICKS_PER_TURN_MAX: Final = 64
"""Ticks that are sent before sockets are read again: a millisecond or two."""
DEADLINE_TICKS: Final = 8
"""Ticks that a deadline counts as, because a deadline makes a step of a session."""
UNITS_PER_TURN: Final = 10
"""Units of bulk work in one turn of the loop, for example sessions: about a millisecond, beside
deadlines, ticks and socket messages."""
MESSAGES_PER_TURN: Final = 8
"""Pub/Sub messages that one turn of the loop handles: half a millisecond."""
ACCOUNT_LOOK_PAUSE_MS: Final = 50
"""Least time between two passes over all sessions of an account or a tenant that has many."""
HOLDERS_READ_PER_MS: Final = 4
"""Sessions that are read in a millisecond, on average, to check who holds the rest of a counter.
After a check the next one waits: thousands of sessions may ask, and thousands may hold."""
ACCOUNT_RETRY_S_MIN: Final = 0.2
ACCOUNT_RETRY_S_MAX: Final = 2.0
"""Delay before an account that could not be read is read again; it doubles from MIN to MAX."""
CHANNEL_SUBSCRIBE_S_MAX: Final = 2.0
"""Longest wait for the confirmation of a subscription; then `subscribe` fails."""
USAGE_READS_AT_ONCE_MAX: Final = 8  # of members' months: thousands may connect together
USAGE_MONTH_SPREAD_MS: Final = 10_000  # in which members read a month that begins
ACCOUNT_READ_PAUSE_MS: Final = 50
"""Least time between two reads of one account after missed messages: an account may have many burn
lines."""
PROBES_PER_UNIT: Final = 8
"""Sockets that count as one of ``UNITS_PER_TURN`` when a process probes all of them."""
TIMERS_CANCELLED_MAX: Final = 4_096
"""Cancelled timers that are kept until their time while they are not the majority."""
HOLD_MS_MAX: Final = 24 * 3_600_000  # PROTOCOL
HOLD_MS_DEFAULT: Final = 15 * 60_000
"""Longer than any operation takes while its backend is alive."""
HOLD_OVERDUE_MS: Final = 60_000
"""Time after a hold's end at which the sweep ends a hold that Postgres still has as open."""
HOLD_EXPIRY_INTERVAL_S: Final = 1.0
GRANT_EXPIRY_INTERVAL_S: Final = 15.0
"""Intervals of the checks for expired holds and credit grants. A hold binds credits; a grant may
wait."""
INBOX_INTERVAL_S: Final = 5.0
"""Interval of the check for notes that a dead process left in the inbox."""
INBOX_AGE_MS_MIN: Final = 2_000
"""Age from which a note belongs to a dead process: a living one removes its note sooner."""
DEMO_TOP_UP_MICROS_MAX: Final = 100_000_000
"""Most that a visitor of the demonstration may grant himself at once: a hundred credits."""
GRANT_EXPIRY_LATE_MS: Final = 120_000
"""Delay after a credit grant's end before it is withdrawn. By then all earlier time and operations
are recorded, even those of a session that ran on without Redis."""
ALLOTMENT_FRESH_MS: Final = 60_000
"""Age up to which the recorded tier of an account is believed."""
ACCOUNTS_CACHED_MAX: Final = 65_536
"""Accounts whose last balance one process caches for its sockets."""
LIMIT_CHANGE_ATTEMPTS_MAX: Final = 16
"""Times that a process applies a limit again because another process changed it meanwhile."""
REPORTED_MINUTE_LATE_MS_MAX: Final = 24 * 3_600_000
"""Age of a minute that a client may still report after a time without a network."""
REPORTED_MINUTE_AHEAD_MS_MAX: Final = 300_000
"""How far the clock of a client that reports minutes may be ahead."""
REPORTED_MINUTE_ATTEMPTS_MAX: Final = 8
"""Attempts for one reported minute: minutes of one session that arrive together, and loads for the
first of them."""
REPORTED_SILENCE_MS_MAX: Final = 24 * 3_600_000
"""Silence that ends a session with reported minutes."""
PREPARED_SESSION_KEPT_MS: Final = 24 * 3_600_000  # PROTOCOL: "a day by default"
PREPARED_SESSION_KEPT_MS_MAX: Final = 366 * 24 * 3_600_000
OUTBOX_ENTRIES_WARN: Final = 100_000
"""Length from which `/readyz` and the dashboard call the outbox long. The outbox is never trimmed.
"""
OUTBOX_AGE_MS_WARN: Final = 60_000
UNFLUSHED_ENTRIES_MAX: Final = 262_144
"""Outbox entries that one process keeps until the watermark passes them: an hour's outage of
Postgres under four thousand sessions. Beyond that only Redis has the oldest."""
WATERMARK_INTERVAL_MS: Final = 5_000
"""Interval at which a process that keeps entries reads the watermark."""
RECOVERED_ENTRIES_MS: Final = 300_000
"""Age up to which ledger entries are looked for after a loss: no replica lags more."""
RECOVERED_ENTRIES_MS_MAX: Final = 480_000
"""The same age at the time of the search, because Postgres may have been away in between. Redis may
have forgotten an older entry, and would then apply the entry again."""
RECOVERED_ENTRIES_MAX: Final = 10_000
RECORD_BEHIND_INTERVAL_MS: Final = 10_000
"""Interval of the check whether a record that was too far behind to restore holds has caught up."""
PARTITIONS_DEFAULT: Final = 64  # PROTOCOL
PARTITIONS_MAX: Final = 1_024
PAGE_ROWS_DEFAULT: Final = 50
SESSIONS_PER_PAGE_MAX: Final = 100  # a receipt has hundreds of segments
INSTANT_AT_MAX: Final = 253_402_300_799_999  # the year 9999: most readers reject a later date
LOST_SESSIONS_PAGE_ROWS: Final = 500
"""Sessions that one query reads when a process looks for those that Redis has lost, or whose
reported minutes it has lost."""
REPORTS_AT_ONCE_MAX: Final = 2
"""Simultaneous reports of one process: each takes a connection of the record's pool."""
REPORT_STALLED_S: Final = 30.0
"""Time after which a report that its client does not read is abandoned, with its connection."""
API_DOCUMENTS_KEPT_MAX: Final = 8
"""OpenAPI documents that one process caches, one for each set of routes. Only tests have several.
"""
# RFC 7518 section 3.2: "A key of the same size as the hash output (for instance, 256
# bits for "HS256") or larger MUST be used with this algorithm."
JWT_SECRET_BYTES_MIN: Final = 32
API_KEY_CHARACTERS_MIN: Final = 20
"""Length below which the start warns that an API key is weak."""
JWKS_LIFETIME_MS: Final = 300_000
"""Interval at which a background task fetches the issuer's keys again."""
JWKS_MISS_MS: Final = 10_000
"""Least time between two fetches that tokens with unknown keys cause, in the long run."""
JWKS_MISSES_MAX: Final = 16
"""Most such fetches at once: a stranger who makes up keys must not delay tokens with new keys."""
JWKS_MISSES_PER_ADDRESS_MAX: Final = 8
"""Most such fetches at once for one address, then one each ``JWKS_MISS_MS``: an address that makes
up keys leaves fetches to the others."""
JWKS_TIMEOUT_MS: Final = 5_000
JWKS_BYTES_MAX: Final = 512 * 1024
JWKS_KEYS_MAX: Final = 256
"""Keys of a set that are read: 2 KiB each, and issuers publish two or three."""
JWKS_FIELD_CHARACTERS_MAX: Final = 4_096
"""Longest field of a key: an RSA modulus of 16,384 bits takes 2,731 characters."""
JWKS_SAME_ID_MAX: Final = 4
"""Keys with the same id that one token is checked with: each costs a signature check."""
JWKS_STALE_MS_MAX: Final = 24 * 3_600_000
"""Age up to which the issuer's last keys are believed while the issuer does not answer."""
JWT_LEEWAY_MS: Final = 60_000
"""How far the issuer's clock may be ahead of ours: a token is valid this long before its `nbf`."""
JWT_EXPIRY_LEEWAY_MS: Final = 5_000
"""How far the issuer's clock may be behind ours: a token is valid this long after its end."""

# --- Relations -----------------------------------------------------------------------

# Sums and products that Lua or JavaScript see stay exact.
assert MONTHLY_HOURS_MAX * 3_600_000 <= limits.SAFE_INTEGER_MAX
# A message holds what it must carry.
assert TOKEN_LISTED_MAX * limits.ID_CHARACTERS_MAX <= limits.TOKEN_CHARACTERS_MAX
assert limits.MESSAGE_BYTES_MAX <= BODY_BYTES_MAX
# A socket that skips ticks still has room for every notice and snapshot of its sessions.
assert WRITE_BUFFER_SKIP_BYTES + SESSIONS_PER_SOCKET_MAX * 8192 < WRITE_BUFFER_CLOSE_BYTES
assert limits.MESSAGE_BYTES_MAX <= WRITE_BUFFER_SKIP_BYTES
assert WRITE_UNSENT_BYTES < WRITE_BUFFER_SKIP_BYTES < WRITE_BUFFER_CLOSE_BYTES
assert SESSIONS_PER_SOCKET_MAX <= REQUESTS_BURST <= USER_REQUESTS_BURST
assert SESSIONS_PER_SOCKET_MAX <= STARTS_BURST <= limits.LIVE_SESSIONS_PER_ACCOUNT_MAX
assert SLOW_PEER_ABORT_MS <= PONG_TIMEOUT_MS
# A client that answers its pings gets every tick. One that stops has paid for nine tenths.
assert PING_INTERVAL_MS < limits.PROOF_FRESH_MS_MAX <= PING_INTERVAL_MS + PONG_TIMEOUT_MS
# A live client answers a ping, also through another process, before time becomes a gap, and before
# the client's request that waits for the answer is given up.
assert 2 * PROBE_SPACING_MS < limits.DOUBT_WAIT_MS < REQUEST_TIMEOUT_MS
assert limits.DOUBT_MS < PING_INTERVAL_MS
# A client can send the answer to a ping again when another process did not take it.
assert REQUEST_TIMEOUT_MS < PONG_TIMEOUT_MS
# The pongs that a socket owes us are no flood.
assert 2 * CONTROL_WINDOW_MS // PROBE_SPACING_MS < CONTROL_FRAMES_MAX
assert limits.TOKEN_CHARACTERS_MAX + 1024 <= REQUEST_HEAD_BYTES_MAX
assert LINGER_MS <= SLOW_PEER_ABORT_MS <= REQUEST_HEAD_MS <= REQUEST_BODY_MS
assert LINGERING_MAX < DESCRIPTORS_RESERVED < DESCRIPTORS_WANTED
# A process misses several heartbeats before it is called dead; its claims end before that.
assert 3 * PRESENCE_BEAT_MS <= limits.NODE_SILENT_MS
assert STOOD_STILL_MS <= PRESENCE_BEAT_MS
# A process notes several times that it is awake before a pause counts as a stall.
assert 2_000 * STALL_LOOK_S <= STOOD_STILL_MS
# Several looks fit into the time in which a heartbeat is prompt, and a prompt one is not a clock
# step.
assert 2_000 * BEAT_LOOK_PAUSE_S < BEAT_PROMPT_MS < CLOCK_DRIFT_MS_MAX < BEAT_LATE_MS_MAX
assert CLOCK_NUDGE_MS_MAX < CLOCK_SLEW_MS_MAX < CLOCK_DRIFT_MS_MAX
# A draining process has time to make a step, and to make it again.
assert 2 * limits.REDIS_TIMEOUT_MS + CLAIM_RETRY_MS_MAX <= SETTLE_MS
# A stopping process can finish all its waits before it is killed.
assert (
    DRAIN_SPREAD_MS + DRAIN_LEFT_MS + SLOW_PEER_ABORT_MS + REQUESTS_LEFT_MS + 2 * SETTLE_MS
    < WORKER_STOP_MS
)
# A claim can fail and be made once more while the session still has granted time.
assert 2 * limits.REDIS_TIMEOUT_MS + CLAIM_RETRY_MS_MIN < limits.GRANT_MARGIN_MS_MIN
assert CLAIM_RETRY_MS_MIN < CLAIM_RETRY_MS_MAX < limits.UNCOVERED_MS_DEFAULT <= UNCOVERED_MS_MAX
assert PING_INTERVAL_MS + PONG_TIMEOUT_MS < HEARTBEAT_PROOF_MS
# A hidden tab's next heartbeat is in time, even over a slow connection.
assert HIDDEN_TIMER_MS + 2 * REQUEST_TIMEOUT_MS < HEARTBEAT_PROOF_MS
assert PREPARED_SESSION_KEPT_MS <= PREPARED_SESSION_KEPT_MS_MAX
# A session's last minute before a credit grant's end, and the longest delay of its record.
assert 60_000 + limits.UNCOVERED_MS_DEFAULT <= GRANT_EXPIRY_LATE_MS
assert HOLD_EXPIRY_INTERVAL_S <= GRANT_EXPIRY_INTERVAL_S
assert 1_000 * GRANT_EXPIRY_INTERVAL_S < GRANT_EXPIRY_LATE_MS
# A process that writes a note has made or given up its step before others take the note.
assert limits.REDIS_TIMEOUT_MS < INBOX_AGE_MS_MIN < 1_000 * INBOX_INTERVAL_S
assert PARTITIONS_DEFAULT <= PARTITIONS_MAX
assert JWKS_MISSES_PER_ADDRESS_MAX < JWKS_MISSES_MAX
assert JWKS_TIMEOUT_MS < JWKS_MISS_MS < JWKS_LIFETIME_MS < JWKS_STALE_MS_MAX
# A process has restored its knowledge before others call it dead, and while sessions still have
# granted time.
assert (
    2 * PRESENCE_BEAT_MS
    < storage_limits.RECOVERY_MS
    < min(limits.NODE_SILENT_MS, limits.GRANT_MARGIN_MS_MIN)
)
assert IDEMPOTENT_WORK_MS < storage_limits.IDEMPOTENT_TAKEOVER_MS < IDEMPOTENCY_KEPT_MS
assert 2 * STEPS_MENDED_AT_ONCE_MAX <= storage_limits.REDIS_CONNECTIONS_MAX
# Reports leave connections to all other work.
assert 2 * REPORTS_AT_ONCE_MAX < storage_limits.DATABASE_CONNECTIONS_MAX
assert LOST_SESSIONS_PAGE_ROWS <= storage_limits.PAGE_ROWS_MAX
assert ACCOUNT_RETRY_S_MIN < ACCOUNT_RETRY_S_MAX
assert storage_limits.CHANNEL_RETRY_S < CHANNEL_SUBSCRIBE_S_MAX
assert WATERMARK_INTERVAL_MS > storage_limits.FLUSH_WAIT_MS
# Redis still remembers the ledger entries that are searched for after a loss.
assert (
    RECOVERED_ENTRIES_MS
    <= RECOVERED_ENTRIES_MS_MAX
    <= storage_limits.SPENDS_REMEMBERED_MS - 120_000
)
assert OUTBOX_ENTRIES_WARN < storage_limits.OUTBOX_ENTRIES_MAX
assert HOLD_MS_DEFAULT <= HOLD_MS_MAX <= storage_limits.ACCOUNT_IDLE_MS
assert (
    storage_limits.DATABASE_TIMEOUT_MS + REQUEST_TIMEOUT_MS + SETTLE_MS
    < storage_limits.START_MS_MAX
)
# A client repeats a request before Redis has forgotten the first one.
assert REQUEST_TIMEOUT_MS < storage_limits.SPENDS_REMEMBERED_MS < storage_limits.ACCOUNT_IDLE_MS
assert HOLD_OVERDUE_MS < storage_limits.HOLD_KEPT_MS < storage_limits.ACCOUNT_IDLE_MS
assert PAGE_ROWS_DEFAULT <= SESSIONS_PER_PAGE_MAX <= storage_limits.PAGE_ROWS_MAX
