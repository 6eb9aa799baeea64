"""Every bound of the server, with its unit in its name, in one place.

Those that the floors below need too are in their ``limits``. The relations between
the numbers are asserted at the end, at import: a change that breaks one never starts.
"""

from typing import Final

from protocol import limits
from storage import limits as storage_limits

MONTHLY_HOURS_MAX: Final = 1_000_000
"""An organisation's month: 1,344 members who never sleep."""
# Whole messages of 16 KiB need no fragments at all; browsers send none. A few are let
# through for proxies that split, the millions of empty ones of PITFALLS are not.
FRAGMENTS_PER_MESSAGE_MAX: Final = 16
TOKEN_LISTED_MAX: Final = 64
"""Ids in one of a token's claims `sessions`, `kinds` and `counterparts`."""
IDEMPOTENCY_KEY_CHARACTERS_MAX: Final = 255
IDEMPOTENT_WORK_MS: Final = 30_000
"""Work under a key ends so soon: long before it is taken for dead and done by another."""
IDEMPOTENCY_KEPT_MS: Final = 24 * 3_600_000
IDEMPOTENT_RETRY_AFTER_S: Final = 1
"""`Retry-After` of a request whose key is under way: work takes milliseconds."""
IDEMPOTENCY_FORGET_INTERVAL_S: Final = 600
"""Interval at which keys that are old enough are forgotten."""
FORGOTTEN_KEYS_PER_BATCH: Final = 1_000
"""Keys that one statement forgets; others are served in between."""
# A token of 8 KiB in a header, and the cookies that other software of the site has set.
REQUEST_HEAD_BYTES_MAX: Final = 32 * 1024
REQUEST_HEADERS_MAX: Final = 100
PREFLIGHT_KEPT_S: Final = 600
"""Time for which browsers keep the answer to a preflight: new origins are seen by then."""
BODY_BYTES_MAX: Final = 64 * 1024
"""The body of an HTTP request of our own surface."""
PING_INTERVAL_MS: Final = 10_000  # PROTOCOL
PONG_TIMEOUT_MS: Final = 10_000  # PROTOCOL: dead after ten more
TICK_SPACING_PERCENT: Final = 90
"""Counted time between two ticks, at least, as a part of their interval; timers are late."""
PROBE_SPACING_MS: Final = 100
"""A socket is asked for a proof of life no more often, however many sessions it carries."""
PROOF_ASKED_MS: Final = 1_000
"""A process where somebody only watches asks others for a session's proof no more often."""
AUTH_TIMEOUT_MS: Final = 10_000  # PROTOCOL: 4501
WRITE_BUFFER_SKIP_BYTES: Final = 64 * 1024  # DESIGN: above it ticks are skipped
WRITE_UNSENT_BYTES: Final = 16 * 1024
"""What the kernel takes of a connection beyond what its peer has room for."""
WRITE_BUFFER_CLOSE_BYTES: Final = 1024 * 1024  # DESIGN: above it 4001
# A peer that reads nothing never empties the buffer, so close() would wait without end:
# the transport is aborted this long after it paused or the close was sent.
SLOW_PEER_ABORT_MS: Final = 5_000
CONNECTION_LOOK_S: Final = 1.0
"""Interval of looks at all connections: a passed deadline is noticed no later."""
ACCEPT_QUEUE_SOCKETS: Final = 2_048
"""Connections that wait to be accepted, as uvicorn has it."""
# One socket carries an application's open chats, not a fleet: what a snapshot each
# after a reconnect may take of the write buffer.
SESSIONS_PER_SOCKET_MAX: Final = 64
SOCKETS_PER_SESSION_MAX: Final = 16
"""Of one process: browsers and tabs of the session's own user that keep it alive."""
OBSERVERS_PER_SESSION_MAX: Final = 16
"""Of one process: sockets that only watch a session. Its own user takes an observer's place."""
SOCKETS_PER_USER_MAX: Final = 32
"""Of one process: tabs and devices of one user; 4503 above."""
# Of one process. Offices and mobile networks stand behind one address, so it is wide; it
# keeps one host from taking all descriptors.
SOCKETS_PER_ADDRESS_MAX: Final = 4_096
REQUEST_HEAD_MS: Final = 10_000
"""From the connection, or a request's first byte, to the end of its head: as for `auth`."""
REQUEST_BODY_MS: Final = 30_000
"""From a request's head to the end of its body: 64 KiB over the worst of mobile networks."""
RETRY_AFTER_S_MAX: Final = 3_600
"""The longest that `Retry-After` says: what is due later is in the document."""
KEEP_ALIVE_MS: Final = 5_000
"""Idle keep-alive timeout, after an answer."""
LINGER_MS: Final = 2_000
"""Time that a refused connection is still read, so that no reset overtakes the answer."""
LINGERING_MAX: Final = 64
"""Refused connections that are read at a time; with more, the others are closed at once."""
REQUESTS_PIPELINED_MAX: Final = 8
"""Requests that wait for the answer to the one before them. Browsers send none."""
# Descriptors that are not sockets of clients: Redis, Postgres, listeners, files.
DESCRIPTORS_RESERVED: Final = 128
DESCRIPTORS_WANTED: Final = 65_536
"""What RLIMIT_NOFILE is raised to, as far as its hard limit allows."""
# Of a socket, and of a user over HTTP. A page makes a handful of requests when it loads and
# then almost none. The burst lets one socket start all its sessions after a reconnect.
REQUESTS_PER_SECOND: Final = 20
REQUESTS_BURST: Final = 100
USER_REQUESTS_PER_SECOND: Final = 60
USER_REQUESTS_BURST: Final = 640
"""Of a user over all sockets of one process: ten of them start all their sessions after a
reconnect."""
STARTS_PER_MINUTE: Final = 60
STARTS_BURST: Final = 128
"""New sessions of a user at one process: two sockets full of them at once, then one a second. Each
leaves 4 KB in Redis, for an hour after its end is written down."""
REQUEST_USERS_MAX: Final = 65_536
"""Users whose requests, or starts, one process counts; the longest silent is forgotten first."""
# So many more than the burst are answered `rate_limited`; then the socket is closed 4502,
# because answering is work too.
REFUSALS_PER_SOCKET_MAX: Final = 200
# Bad tokens and keys from one address; good ones pass in any number.
AUTH_FAILURES_PER_ADDRESS_PER_MINUTE: Final = 60
AUTH_FAILURE_ADDRESSES_MAX: Final = 65_536
"""Addresses whose bad guesses are counted in one minute; with more, counting begins anew."""
SUSPECT_CHECK_MS: Final = 2
"""Pace of signature checks for addresses that have used up their guesses: a check takes
0.1 ms, so guessing takes at most a twentieth of the loop."""
SUSPECT_CHECKS_WAITING_MAX: Final = 256
"""Tokens of one such address that wait for their check, half a second at most where it is the only
one; with more, the oldest must come again."""
GOOD_TOKENS_REMEMBERED_MAX: Final = 16_384
"""Tokens that were good before, of which none waits for its check: a hash of 32 bytes each."""
ORIGINS_REPORTED_MAX: Final = 64
"""Refused origins that are named in the log, once each."""
ORIGIN_CHARACTERS_SHOWN: Final = 200
PROXIES_REPORTED_MAX: Final = 16
"""Untrusted peers that send ``X-Forwarded-For`` and are named in the log, once each."""
INBOX_MESSAGES_MAX: Final = 32
"""Messages of one socket that wait for the application before reading is paused."""
SLICE_BYTES: Final = 1024
"""What the parser of frames is fed at once: at most 170 frames, which are empty then."""
FRAMES_PER_TURN: Final = 64
"""Frames of one peer after which others have their turn: a third of a millisecond."""
SOCKETS_PER_TURN: Final = 16
"""Sockets that are read, or are gone, in one turn of the loop, whatever has come from how many:
each with a pong that lets a tick out takes 0.1 ms."""
CONTROL_FRAMES_MAX: Final = 256
"""Pings and pongs of one peer in ``CONTROL_WINDOW_MS``; it owes us one pong or a few."""
CONTROL_WINDOW_MS: Final = 10_000
DRAIN_SPREAD_MS: Final = 10_000
"""Longest time over which a draining process spreads the return of its sockets."""
# Starting a socket and joining its session takes a process a millisecond; few clients need
# not wait for each other.
DRAIN_SOCKETS_PER_SECOND: Final = 500
DRAIN_LEFT_MS: Final = 2_000
"""Time after that in which sockets may go by themselves, before they are closed."""
DRAIN_BATCH_SOCKETS: Final = 256
"""Sockets told to reconnect between two looks at the clock."""
SETTLE_MS: Final = 5_000
"""How long a process that stops waits for the steps of its sessions."""
REQUESTS_LEFT_MS: Final = 5_000
"""How long it waits for requests that are being answered."""
WORKERS_MAX: Final = 64
"""Processes of one ``web --workers``: more cores than these have a proxy in front."""
WORKER_STOP_MS: Final = 35_000
"""Time in which a process must stop when asked to, before it is killed."""
WORKER_RESTART_MS_MIN: Final = 100
WORKER_RESTART_MS_MAX: Final = 10_000
"""Delay before a process that died is started again, doubling between the two."""
WORKER_PROVEN_MS: Final = 30_000
"""Life of a process after which the doubling begins anew."""
ENGINE_HEALTH_KEPT_MS: Final = 1_000
"""Age up to which `/readyz` and `/metrics` share one look at Redis and Postgres."""
SESSIONS_COUNTED_PER_TURN: Final = 512
"""Sessions counted for a scrape before others have their turn: a fifth of a millisecond."""
SCRAPES_MAX: Final = 16
"""Requests at a time on the port for health and metrics."""
METRICS_PORT_RETRY_S: Final = 0.2
"""Pause before a port for health and metrics that is taken is tried again."""
FAILURES_LOGGED_PER_SECOND_MAX: Final = 20
"""Failures that are logged with their traceback; the next line counts the rest. A bug in every
tick of ten thousand sessions would delay them all by its log."""
LOG_FIELD_DEPTH_MAX: Final = 8
"""Levels of a log event's fields that are searched for secrets; what is deeper is cut off."""
PRESENCE_BEAT_MS: Final = 1_000  # DESIGN: a process proves its life
RECONCILE_BEATS: Final = 60
"""Beats after which a process looks for sessions noted for it that it does not have."""
BEAT_LOOK_PAUSE_S: Final = 0.02
"""Pause between two looks for the beats that others were asked for."""
BEAT_PROMPT_MS: Final = 100
"""Delay of a beat, by its sender's idea of the clock of Redis, up to which the beat is prompt.
A later beat was on its way, and its cluster time is as old; or Redis was stepped. The next beat
tells."""
CLOCK_STEADY_MS: Final = 1
"""Two clocks agree on the length of a pause to within this, unless one is stepped."""
CLOCK_NUDGE_MS_MAX: Final = 0.05
"""The most that one beat a second moves a clock's offset: 50 parts in a million."""
CLOCK_SLEW_MS_MAX: Final = 5.0
"""The same where a slow answer had set the clock: half a second is corrected in two minutes, and a
bill is off by 5 ms a second meanwhile."""
CLOCK_DRIFT_MS_MAX: Final = 250
"""The largest difference of two clocks that is drift: at a larger one, a wall clock was stepped. An
answer that took longer than this says nothing about the clock."""
STALL_LOOK_S: Final = 0.25
"""Interval at which a process notes that it is awake."""
STOOD_STILL_MS: Final = 1_000
"""A process that did nothing for longer than this takes nothing that waited in its sockets
for a proof of life of now. A turn of its loop takes some 10 ms."""
SWEEP_BATCH_SESSIONS: Final = 256
"""Detached in one atomic step of a sweep: Redis serves no other command meanwhile."""
# What a request over HTTP waits for a session's step: longer than a claim and its repetition.
REQUEST_TIMEOUT_MS: Final = 5_000
LOADS_PER_STEP_MAX: Final = 4
"""Times that one step finds something cold, and loads it: account, months and free time, a race."""
STEPS_MENDED_AT_ONCE_MAX: Final = 16
"""Steps of one batch that are mended side by side: half of the connections to Redis."""
UNANSWERED_STEPS_KEPT_MAX: Final = 32
"""Steps without an answer that a session remembers; all of them are asked from one version."""
HEARTBEAT_SESSIONS_MAX: Final = 65_536
"""Sessions of one process that live by heartbeats over HTTP."""
SILENCES_MAX: Final = 65_536
"""Tracked sessions whose silence one process waits for; others are found by the sweep."""
HEARTBEAT_PROOF_MS: Final = 75_000  # PROTOCOL: an HTTP proof of life
HIDDEN_TIMER_MS: Final = 60_000
"""Browsers run the timers of a hidden tab once in this time."""
UNCOVERED_MS_MAX: Final = 3_600_000
"""An hour of debt without Redis is more than anyone should want to collect."""
CLAIM_RETRY_MS_MIN: Final = 100
CLAIM_RETRY_MS_MAX: Final = 2_000
"""Delay before a claim that failed is made again, doubling between the two."""
CLAIM_PIPELINES_MAX: Final = 4
"""On their way at once: what a process has at Redis is done long before its deadline."""
STOP_LATENESS_MS_P99: Final = 10  # DESIGN: the promise
TICKS_PER_TURN_MAX: Final = 64
"""Ticks sent before sockets are looked at again: a millisecond or two."""
DEADLINE_TICKS: Final = 8
"""Ticks that a deadline counts as in a turn: it makes a step of a session."""
UNITS_PER_TURN: Final = 10
"""Sessions that one turn of the loop looks after, whatever is to be done for many at once: about
a millisecond, beside deadlines, ticks and what sockets say."""
MESSAGES_PER_TURN: Final = 8
"""Messages of channels that one turn of the loop takes: half a millisecond."""
ACCOUNT_LOOK_PAUSE_MS: Final = 50
"""Between two looks at all sessions of an account that has many."""
ACCOUNT_RETRY_S_MIN: Final = 0.2
ACCOUNT_RETRY_S_MAX: Final = 2.0
"""Delay before an account that could not be read is read again, doubling between the two."""
CHANNEL_SUBSCRIBE_S_MAX: Final = 2.0
"""Longest wait for the confirmation of a subscription; then `subscribe` fails."""
ACCOUNT_READ_PAUSE_MS: Final = 50
"""Between two readings of one account after messages were missed: it may have many lines."""
PROBES_PER_UNIT: Final = 8
"""Sockets that are asked for a proof of life in one of these units, where all are asked."""
TIMERS_CANCELLED_MAX: Final = 4_096
"""Timers that were cancelled and are kept till their time, as long as they are not the most."""
HOLD_MS_MAX: Final = 24 * 3_600_000  # PROTOCOL
HOLD_MS_DEFAULT: Final = 15 * 60_000
"""Longer than any operation takes whose backend is alive."""
HOLD_OVERDUE_MS: Final = 60_000
"""Age, after its end, of a hold that Postgres has as open: the sweep ends it then."""
HOLD_EXPIRY_INTERVAL_S: Final = 1.0
GRANT_EXPIRY_INTERVAL_S: Final = 15.0
"""Intervals at which what has expired is looked for: holds bind credits, grants may wait."""
GRANT_EXPIRES_AT_MAX: Final = 253_402_300_799_999
"""The last millisecond of the year 9999: later ones are no date to most who read them."""
INBOX_INTERVAL_S: Final = 5.0
"""Interval at which notes are looked for that a dead process left."""
INBOX_AGE_MS_MIN: Final = 2_000
"""Age from which a note is taken for a dead process's: a living one is about to take it away."""
DEMO_TOP_UP_MICROS_MAX: Final = 100_000_000
"""What a visitor of the demonstration may grant himself at once: a hundred credits."""
GRANT_EXPIRY_LATE_MS: Final = 120_000
"""Delay after its end before a grant is taken back: time and operations of before have been
written down by then, even those of a session that ran on without Redis."""
ALLOTMENT_FRESH_MS: Final = 60_000
"""Age up to which the tier of an account is believed as the record had it."""
ACCOUNTS_CACHED_MAX: Final = 65_536
"""Accounts whose last balance one process remembers for its sockets."""
LIMIT_CHANGE_ATTEMPTS_MAX: Final = 16
"""Changes of one limit that are made at once, before the last of them wins."""
REPORTED_MINUTE_LATE_MS_MAX: Final = 24 * 3_600_000
"""Age of a minute that a client may still report, after a while without a network."""
REPORTED_MINUTE_AHEAD_MS_MAX: Final = 300_000
"""How far the clock of a client that reports minutes may be ahead."""
REPORTED_MINUTE_ATTEMPTS_MAX: Final = 8
"""Minutes of one session that arrive together, and what must be loaded for the first."""
REPORTED_SILENCE_MS_MAX: Final = 24 * 3_600_000
"""Silence that ends a session whose client counts for itself."""
PREPARED_SESSION_KEPT_MS: Final = 24 * 3_600_000  # PROTOCOL: "a day by default"
PREPARED_SESSION_KEPT_MS_MAX: Final = 366 * 24 * 3_600_000
OUTBOX_ENTRIES_WARN: Final = 100_000
"""From here `/readyz` and the dashboard call the outbox long. It is never trimmed."""
OUTBOX_AGE_MS_WARN: Final = 60_000
UNFLUSHED_ENTRIES_MAX: Final = 262_144
"""Outbox entries that one process keeps until the watermark passes them: an hour's outage of
Postgres under four thousand sessions. Beyond that the oldest are in Redis alone."""
WATERMARK_INTERVAL_MS: Final = 5_000
"""Interval at which a process that keeps anything asks how far the flush has come."""
RECOVERED_ENTRIES_MS: Final = 300_000
"""Entries of the ledger that are so young are looked for after a loss: no replica lags more."""
RECOVERED_ENTRIES_MS_MAX: Final = 480_000
"""The same when they are looked for, should Postgres have been away in between. What is older
may be forgotten where it was taken, and would be taken again."""
RECOVERED_ENTRIES_MAX: Final = 10_000
RECORD_BEHIND_INTERVAL_MS: Final = 10_000
"""Interval at which it is looked whether a record that was too far behind to restore holds from
has caught up."""
PARTITIONS_DEFAULT: Final = 64  # PROTOCOL
PARTITIONS_MAX: Final = 1_024
PAGE_ROWS_DEFAULT: Final = 50
LOST_SESSIONS_PAGE_ROWS: Final = 500
"""Sessions that are read at once when those are looked for that Redis has lost."""
REPORTS_AT_ONCE_MAX: Final = 2
"""Reports of one process at a time: each takes a connection of the record's pool."""
REPORT_STALLED_S: Final = 30.0
"""Time after which a report that its client does not read is given up, with its connection."""
API_DOCUMENTS_KEPT_MAX: Final = 8
"""Sets of routes in one process whose OpenAPI document is kept: there is one, but in tests."""
# RFC 7518 section 3.2: "A key of the same size as the hash output (for instance, 256
# bits for "HS256") or larger MUST be used with this algorithm."
JWT_SECRET_BYTES_MIN: Final = 32
API_KEY_CHARACTERS_MIN: Final = 20
"""The shortest API key that is not called weak at the start."""
JWKS_LIFETIME_MS: Final = 300_000
"""Interval at which the issuer's keys are fetched anew, in the background."""
JWKS_MISS_MS: Final = 10_000
"""Tokens with unknown keys make the server ask the issuer at most this often for long."""
JWKS_MISSES_MAX: Final = 16
"""So often at once: a stranger who makes up keys must not hold up those who have new ones."""
JWKS_MISSES_PER_ADDRESS_MAX: Final = 8
"""So often at once for one address, and then each ``JWKS_MISS_MS``: who makes up keys leaves the
others some."""
JWKS_TIMEOUT_MS: Final = 5_000
JWKS_BYTES_MAX: Final = 512 * 1024
JWKS_KEYS_MAX: Final = 256
"""Keys of a set that are looked at: 2 KiB each, and issuers publish two or three."""
JWKS_FIELD_CHARACTERS_MAX: Final = 4_096
"""The longest field of a key: an RSA modulus of 16,384 bits takes 2,731."""
JWKS_SAME_ID_MAX: Final = 4
"""Keys with one id that a token is checked with: each costs a signature."""
JWKS_STALE_MS_MAX: Final = 24 * 3_600_000
"""While the issuer does not answer its last keys are believed, but no longer than this."""
JWT_LEEWAY_MS: Final = 60_000
"""How far the issuer's clock may be ahead of ours: `nbf` counts from so much earlier."""
JWT_EXPIRY_LEEWAY_MS: Final = 5_000
"""How far it may be behind: a token is taken up to this time after its end."""

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
# Who is there answers a ping and another process before time is taken for a gap; and before a
# client's request that waits for this is given up.
assert 2 * PROBE_SPACING_MS < limits.DOUBT_WAIT_MS < REQUEST_TIMEOUT_MS
assert limits.DOUBT_MS < PING_INTERVAL_MS
# The pongs that a socket owes us are no flood.
assert 2 * CONTROL_WINDOW_MS // PROBE_SPACING_MS < CONTROL_FRAMES_MAX
assert limits.TOKEN_CHARACTERS_MAX + 1024 <= REQUEST_HEAD_BYTES_MAX
assert LINGER_MS <= SLOW_PEER_ABORT_MS <= REQUEST_HEAD_MS <= REQUEST_BODY_MS
assert LINGERING_MAX < DESCRIPTORS_RESERVED < DESCRIPTORS_WANTED
# A process misses several beats before it is called dead; its claims end before that.
assert 3 * PRESENCE_BEAT_MS <= limits.NODE_SILENT_MS
assert STOOD_STILL_MS <= PRESENCE_BEAT_MS
# A process notes several times that it is awake before it has stood still.
assert 2_000 * STALL_LOOK_S <= STOOD_STILL_MS
# Several looks fall into the time in which a beat is prompt, and a prompt beat is no step.
assert 2_000 * BEAT_LOOK_PAUSE_S < BEAT_PROMPT_MS < CLOCK_DRIFT_MS_MAX
assert CLOCK_NUDGE_MS_MAX < CLOCK_SLEW_MS_MAX < CLOCK_DRIFT_MS_MAX
# Whoever drains has time to make a step, and to make it again.
assert 2 * limits.REDIS_TIMEOUT_MS + CLAIM_RETRY_MS_MAX <= SETTLE_MS
# A process that stops is not killed while it does what it may do first.
assert (
    DRAIN_SPREAD_MS + DRAIN_LEFT_MS + SLOW_PEER_ABORT_MS + REQUESTS_LEFT_MS + 2 * SETTLE_MS
    < WORKER_STOP_MS
)
# A claim fails and is made once more while the session stands on granted ground.
assert 2 * limits.REDIS_TIMEOUT_MS + CLAIM_RETRY_MS_MIN < limits.GRANT_MARGIN_MS_MIN
assert CLAIM_RETRY_MS_MIN < CLAIM_RETRY_MS_MAX < limits.UNCOVERED_MS_DEFAULT <= UNCOVERED_MS_MAX
assert PING_INTERVAL_MS + PONG_TIMEOUT_MS < HEARTBEAT_PROOF_MS
# A hidden tab's next heartbeat comes in time, over a slow line too.
assert HIDDEN_TIMER_MS + 2 * REQUEST_TIMEOUT_MS < HEARTBEAT_PROOF_MS
assert PREPARED_SESSION_KEPT_MS <= PREPARED_SESSION_KEPT_MS_MAX
# A session's last minute before a grant's end, and the longest it may come late.
assert 60_000 + limits.UNCOVERED_MS_DEFAULT <= GRANT_EXPIRY_LATE_MS
assert HOLD_EXPIRY_INTERVAL_S <= GRANT_EXPIRY_INTERVAL_S
assert 1_000 * GRANT_EXPIRY_INTERVAL_S < GRANT_EXPIRY_LATE_MS
# A process that writes a note has given its step up, or has made it, before others take the note.
assert limits.REDIS_TIMEOUT_MS < INBOX_AGE_MS_MIN < 1_000 * INBOX_INTERVAL_S
assert PARTITIONS_DEFAULT <= PARTITIONS_MAX
assert JWKS_MISSES_PER_ADDRESS_MAX < JWKS_MISSES_MAX
assert JWKS_TIMEOUT_MS < JWKS_MISS_MS < JWKS_LIFETIME_MS < JWKS_STALE_MS_MAX
# What a process knows is back before others would take the process for dead, and while
# sessions still run on their grants.
assert (
    2 * PRESENCE_BEAT_MS
    < storage_limits.RECOVERY_MS
    < min(limits.NODE_SILENT_MS, limits.GRANT_MARGIN_MS_MIN)
)
assert IDEMPOTENT_WORK_MS < storage_limits.IDEMPOTENT_TAKEOVER_MS < IDEMPOTENCY_KEPT_MS
assert 2 * STEPS_MENDED_AT_ONCE_MAX <= storage_limits.REDIS_CONNECTIONS_MAX
# Reports leave connections to everything else.
assert 2 * REPORTS_AT_ONCE_MAX < storage_limits.DATABASE_CONNECTIONS_MAX
assert LOST_SESSIONS_PAGE_ROWS <= storage_limits.PAGE_ROWS_MAX
assert ACCOUNT_RETRY_S_MIN < ACCOUNT_RETRY_S_MAX
assert storage_limits.CHANNEL_RETRY_S < CHANNEL_SUBSCRIBE_S_MAX
assert WATERMARK_INTERVAL_MS > storage_limits.FLUSH_WAIT_MS
# What the ledger is searched for after a loss is remembered where it was taken.
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
# Repeating a request is done before Redis has forgotten what it was about.
assert REQUEST_TIMEOUT_MS < storage_limits.SPENDS_REMEMBERED_MS < storage_limits.ACCOUNT_IDLE_MS
assert HOLD_OVERDUE_MS < storage_limits.HOLD_KEPT_MS < storage_limits.ACCOUNT_IDLE_MS
assert PAGE_ROWS_DEFAULT <= storage_limits.PAGE_ROWS_MAX
