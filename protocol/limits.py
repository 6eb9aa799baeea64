"""The bounds of the exchange's rules, with units in their names.

Bounds that only the floors above need are in ``storage.limits`` and ``server.limits``.

Every queue, batch, cache and wait has its bound here or there. The relations between the numbers
are asserted at the end, at import: a process in which a change breaks one does not start. A comment
marks each number that PROTOCOL or DESIGN fixes. The other numbers are ours; the comment gives the
reason for each.
"""

from typing import Final

# --- Numbers ---------------------------------------------------------------------

SAFE_INTEGER_MAX: Final = 2**53 - 1
"""The largest integer that is exact in JavaScript and in Lua, whose numbers are doubles."""
MONTH_START_SPREAD_MS: Final = 15 * 3_600_000
"""Most time between a month's start in UTC and its start in any time zone: UTC-12 to UTC+14."""

# A thousand million credits. The sum of a few balances, holds and charges that Lua makes must stay
# exact too, so this bound lies well below the bound of doubles. Lua's tostring keeps 14 digits
# only: scripts write micros with string.format("%.0f").
BALANCE_MICROS_MAX: Final = 10**15
AMOUNT_MICROS_MAX: Final = BALANCE_MICROS_MAX
"""The largest grant, spend, hold or adjustment in one entry."""

PRICE_MICROS_MAX: Final = 10**10
"""The highest price of a minute: 10,000 credits. The price of a year is then an exact double."""

SESSION_CAP_MS_MAX: Final = 31 * 24 * 3_600_000
"""The longest cap a kind can set: no session metered in minutes lasts a month."""

# --- Messages --------------------------------------------------------------------

MESSAGE_BYTES_MAX: Final = 16 * 1024  # PROTOCOL: a longer message closes the socket with 1009
METADATA_BYTES_MAX: Final = 2 * 1024  # PROTOCOL: bytes of the JSON without spaces
# Our messages need no deeper JSON, and reading it costs stack.
JSON_DEPTH_MAX: Final = 16
ID_CHARACTERS_MAX: Final = 128  # PROTOCOL
# An RS256 token with a few claims takes 1 KiB. With 8 KiB, the message around it has room too.
TOKEN_CHARACTERS_MAX: Final = 8 * 1024
REASON_CHARACTERS_MAX: Final = 256
"""Most characters of the free text that explains a ledger entry."""
# PITFALLS: Stream's SDK decompresses without a bound, so the size is checked before the reading.
TICK_MS_MIN: Final = 250  # PROTOCOL
TICK_MS_MAX: Final = 60_000  # PROTOCOL
TICK_MS_DEFAULT: Final = 1_000
NOTICES_KEPT_MAX: Final = 32  # PROTOCOL: the newest of a session, sent again in `missed`
NOTICES_UNRECORDED_MAX: Final = 128
"""Most notices of a session that a process may send before it records one. When a process dies,
this many numbers are skipped, so that none is used twice."""
SEGMENTS_PER_RECEIPT_MAX: Final = 256
"""Most segments that a receipt lists; beyond that, the oldest two are joined."""
REQUESTS_WAITING_PER_SESSION_MAX: Final = 16
"""Most requests of one session that wait for an answer in one meter; more are refused."""
REMOTE_STEPS_WAITING_MAX: Final = 8
"""Most steps of other processes that wait for the answer to a step of this process. Beyond that,
the session is read anew."""

# --- Rate card -------------------------------------------------------------------

KINDS_MAX: Final = 256
OPERATIONS_MAX: Final = 1_024
TIERS_MAX: Final = 64
PACKAGES_MAX: Final = 256
PACKAGE_DAYS_MAX: Final = 3_660
"""Ten years: the longest validity of a package."""
WARNINGS_MAX: Final = 16
"""Most thresholds of one kind: fewer than the notices kept, so that none displaces another."""
INCREMENT_MS_MAX: Final = 3_600_000
"""The longest increment: billing by the hour."""
FREE_MS_MAX: Final = 24 * 3_600_000
"""The longest free time: one day, the widest scope of free time."""
WARN_AT_MS_MAX: Final = SESSION_CAP_MS_MAX
STOP_GRACE_MS_MAX: Final = 300_000
"""The longest unbilled time to save: five minutes, because this time is given away."""
WARNING_HYSTERESIS_MS: Final = 1_000
"""How far above its threshold the remaining time must rise before a warning is cleared. Projections
vary by less than this."""
RECONNECT_GRACE_MS_MAX: Final = 3_600_000
TOLERANCE_MS_MAX: Final = 3_600_000
"""The widest tolerance of an outside clock: beyond an hour nothing would ever be corrected."""
PROVIDED_SILENCE_MS_MAX: Final = 7 * 24 * 3_600_000
"""Longest suspension of a session whose outside clock is silent. That clock's word ends the
session, so this bounds only sessions that the clock has forgotten."""
PROVIDED_SINCE_MS_MAX: Final = RECONNECT_GRACE_MS_MAX
"""How far back time may begin that an outside clock makes known afterwards. A minute of it is
offered as a part, as for the longest gap; earlier time is settled at the session's end."""
SPEED_MAX: Final = 100
"""The fastest demonstration: ten minutes pass in six seconds."""
OPERATIONS_PER_MONTH_MAX: Final = 1_000_000_000

# --- Connections -----------------------------------------------------------------

PROOF_FRESH_MS_MAX: Final = 12_000
"""Longest time after a proof of life in which ticks are sent: a ping interval, and a slow
connection."""
DOUBT_MS: Final = 1_000
"""A joining socket raises no doubt when the newest proof of life is at most this old."""
DOUBT_WAIT_MS: Final = 1_000
"""Longest wait for the earlier sockets of a session in doubt. A socket that answers is alive."""
UNPROVEN_SHARE: Final = 10
"""Ticks also stop after one tenth of the time that the client has proven since it joined. The
client may never pay for the time without proof. This bound keeps that time at a tenth of the time
it pays for."""
CLAIM_PROOF_WAIT_MS: Final = 1_000
"""Longest wait of a claim for a proof of life, before the claim extends the grant."""
STOP_PROOF_WAIT_MS: Final = 1_000
"""Longest wait for a proof of life before a stop that the client did not ask for."""

# --- Live state and presence -----------------------------------------------------

NODE_SILENT_MS: Final = 5_000  # DESIGN: after this the process is dead
UNCOVERED_MS_DEFAULT: Final = 60_000  # PROTOCOL

# --- Grants and claims -----------------------------------------------------------

GRANT_MARGIN_MS_MIN: Final = 5_000  # DESIGN: one increment, at least this
GRANT_SHRUNKEN_MS: Final = (5_000, 1_000)  # DESIGN: the steps of a counter that runs low
# DESIGN: a counter is low below twice what the account's sessions burn in a minute.
GRANT_LOW_MINUTES: Final = 2
REST_YIELD_MS: Final = 1_000
"""Time after a recall in which the recalled session does not take the whole rest of a counter. By
then the session that needs the rest has taken its share, or has given up."""
RECALL_WAIT_MS: Final = 250  # DESIGN: holders settle and shrink, then the spend is tried again
KEPT_OPEN_ASKS_MAX: Final = 64
"""Most sessions of one month that ask again in each ``RECALL_WAIT_MS``, while a process that holds
minutes of the month does not answer."""
KEPT_OPEN_PACE_MS_MAX: Final = 50_000
"""Longest time until such a session asks again: it claims each minute before the next one ends."""
# The outer deadline of one Redis call. A connection to a dead server fails after 3.6 s (PITFALLS).
# A claim must fail early enough to be repeated within the margin.
REDIS_TIMEOUT_MS: Final = 1_500
MINUTES_PER_CLAIM_MAX: Final = 256
"""Most records in one late claim; the next claim carries the rest."""
MINUTES_SENT_MAX: Final = 8
"""Most numbers of sent minutes that a process keeps of a session, to send none twice.

A repeated message about one step arrives within seconds. Two or three minutes at most complete in
that time.
"""
LIVE_SESSIONS_PER_ACCOUNT_MAX: Final = 256
"""Most live sessions of one account.

Work on all of them is done in bounded parts, one part in each turn of the event loop, so other
accounts are not delayed. On a busy machine, a recall of all of them may take longer than
``RECALL_WAIT_MS``. The spend then gets ``unavailable`` and may be repeated.
"""
GAP_PARTS_MAX: Final = 32
"""Most increments of a billed gap that one claim offers as ends of a part.

The claim offers as many in all of the gap, and as many where the account is thought to end.
"""
GAP_MINUTES_MAX: Final = 64
"""Most minutes of a billed gap that one claim offers as ends of a part."""
BURN_LINES_EXACT_MAX: Final = 8
"""Most sessions of one account whose sum a projection computes exactly at every instant."""
BURN_SUM_KEPT_MS: Final = 100
"""With more sessions, how long one sum serves the ticks of all of them."""
FILTER_CHARACTERS_MAX: Final = 1_024
"""Longest filter of live sessions."""
FILTER_WORDS_MAX: Final = 16
FILTER_VALUES_MAX: Final = 64
"""Most values of one word of a filter."""
FILTER_TOKEN_SHOWN_MAX: Final = 64
"""Longest part of a bad filter that its error repeats."""

# --- Relations -----------------------------------------------------------------------

# Sums and products in Lua and JavaScript stay exact.
assert 8 * BALANCE_MICROS_MAX <= SAFE_INTEGER_MAX
assert PRICE_MICROS_MAX * 366 * 24 * 60 <= SAFE_INTEGER_MAX
# A message has room for the largest token, and for the largest metadata with its ids.
assert TOKEN_CHARACTERS_MAX + 1024 <= MESSAGE_BYTES_MAX
assert METADATA_BYTES_MAX + 6 * ID_CHARACTERS_MAX + 1024 <= MESSAGE_BYTES_MAX
assert TICK_MS_MIN <= TICK_MS_DEFAULT <= TICK_MS_MAX
# A tick interval is longer than twice the age of the sum that the tick shows.
assert 2 * BURN_SUM_KEPT_MS < TICK_MS_MIN
assert 2 * WARNINGS_MAX <= NOTICES_KEPT_MAX
# Each threshold of four limits, the end of free time, and the stop.
assert 4 * WARNINGS_MAX + 2 <= NOTICES_UNRECORDED_MAX
# A claim and a stop wait at least as long as other processes have to answer about a proof.
assert min(CLAIM_PROOF_WAIT_MS, STOP_PROOF_WAIT_MS) >= DOUBT_WAIT_MS
assert CLAIM_PROOF_WAIT_MS < GRANT_MARGIN_MS_MIN
assert 10 * UNPROVEN_SHARE >= 9 * (UNPROVEN_SHARE + 1)
# The claims of a process end before other processes declare it dead.
assert REDIS_TIMEOUT_MS < NODE_SILENT_MS
assert sorted(GRANT_SHRUNKEN_MS, reverse=True) == list(GRANT_SHRUNKEN_MS)
assert GRANT_SHRUNKEN_MS[0] <= GRANT_MARGIN_MS_MIN
assert GRANT_SHRUNKEN_MS[-1] > RECALL_WAIT_MS
# Each minute of the longest gap is offered, with the time until the loss is found.
assert GAP_MINUTES_MAX * 60_000 >= RECONNECT_GRACE_MS_MAX + 2 * 60_000
assert 2 * RECALL_WAIT_MS < REST_YIELD_MS
assert RECALL_WAIT_MS < KEPT_OPEN_PACE_MS_MAX < 60_000
# A grant on a low counter leaves time for two answers in a row.
assert GRANT_SHRUNKEN_MS[0] >= 2 * REDIS_TIMEOUT_MS
