"""The bounds that the rules of the exchange need, with their units in their names, in one place.

Those that only the floors above need are in ``storage.limits`` and ``server.limits``.

A queue, batch, cache or wait that has no number here does not exist. The relations
between the numbers are asserted at the end, at import: a change that breaks one never
starts. Numbers that PROTOCOL or DESIGN fix are marked so; the others are ours, and the
comment says why they are what they are.
"""

from typing import Final

# --- Numbers ---------------------------------------------------------------------

SAFE_INTEGER_MAX: Final = 2**53 - 1
"""The largest integer that is exact in JavaScript and in Lua, whose numbers are doubles."""
MONTH_START_SPREAD_MS: Final = 15 * 3_600_000
"""Most time between a month's start in UTC and its start in any time zone: UTC-12 to UTC+14."""

# A thousand million credits. The sum of a few balances, holds and charges that Lua makes
# must stay exact too, so this lies well below the bound of doubles. Mind that Lua's
# tostring keeps 14 digits only: micros are written with string.format("%.0f").
BALANCE_MICROS_MAX: Final = 10**15
AMOUNT_MICROS_MAX: Final = BALANCE_MICROS_MAX
"""The largest grant, spend, hold or adjustment in one entry."""

PRICE_MICROS_MAX: Final = 10**10
"""The highest price of a minute: 10,000 credits, a year of which is an exact double."""

SESSION_CAP_MS_MAX: Final = 31 * 24 * 3_600_000
"""The longest cap a kind can set: nothing that is metered in minutes lasts a month."""

# --- Messages --------------------------------------------------------------------

MESSAGE_BYTES_MAX: Final = 16 * 1024  # PROTOCOL: 1009 above
METADATA_BYTES_MAX: Final = 2 * 1024  # PROTOCOL, as encoded without spaces
# Deeper JSON is no message of ours, and reading it costs stack.
JSON_DEPTH_MAX: Final = 16
ID_CHARACTERS_MAX: Final = 128  # PROTOCOL
# RS256 tokens with a few claims take 1 KiB; 8 leaves room in the message around it.
TOKEN_CHARACTERS_MAX: Final = 8 * 1024
REASON_CHARACTERS_MAX: Final = 256
"""Free text that explains a ledger entry."""
# PITFALLS: Stream's SDK gunzips without bound, so the size is capped before it is read.
TICK_MS_MIN: Final = 250  # PROTOCOL
TICK_MS_MAX: Final = 60_000  # PROTOCOL
TICK_MS_DEFAULT: Final = 1_000
NOTICES_KEPT_MAX: Final = 32  # PROTOCOL: a session's newest, delivered again as `missed`
NOTICES_UNRECORDED_MAX: Final = 128
"""What a process says of a session at most before it can record it: so many numbers nobody uses
when it has died."""
SEGMENTS_PER_RECEIPT_MAX: Final = 256
"""Segments that a receipt lists; with more, the oldest two become one."""
REQUESTS_WAITING_PER_SESSION_MAX: Final = 16
"""Requests of one session that wait for their answer in one meter; more are refused."""
REMOTE_STEPS_WAITING_MAX: Final = 8
"""Steps of other processes that wait for an own answer; with more the session is read anew."""

# --- Rate card -------------------------------------------------------------------

KINDS_MAX: Final = 256
OPERATIONS_MAX: Final = 1_024
TIERS_MAX: Final = 64
PACKAGES_MAX: Final = 256
PACKAGE_DAYS_MAX: Final = 3_660
"""Ten years, after which nobody remembers what was bought."""
WARNINGS_MAX: Final = 16
"""Thresholds of one kind: fewer than the notices kept, so none pushes another out."""
INCREMENT_MS_MAX: Final = 3_600_000
"""The coarsest billing: by the hour."""
FREE_MS_MAX: Final = 24 * 3_600_000
"""Free time: a day, the widest scope it can have."""
WARN_AT_MS_MAX: Final = SESSION_CAP_MS_MAX
STOP_GRACE_MS_MAX: Final = 300_000
"""Unbilled time to save: five minutes, for it is given away."""
WARNING_HYSTERESIS_MS: Final = 1_000
"""Time above its threshold at which a warning is cleared: projections flicker less than this."""
RECONNECT_GRACE_MS_MAX: Final = 3_600_000
SPEED_MAX: Final = 100
"""The fastest demonstration: ten minutes in six seconds."""
OPERATIONS_PER_MONTH_MAX: Final = 1_000_000_000

# --- Connections -----------------------------------------------------------------

PROOF_FRESH_MS_MAX: Final = 12_000
"""Ticks go out no longer than this after the last proof of life: a ping, and a slow line."""
DOUBT_MS: Final = 1_000
"""A socket that joins finds no doubt where a proof of life is no older than this."""
DOUBT_WAIT_MS: Final = 1_000
"""How long those who were there before are waited for; who answers is there."""
UNPROVEN_SHARE: Final = 10
"""Nor longer than this part (a tenth) of the time that the client has proven before, since it
came: what it is served without proof, and may never pay for, stays a tenth of what it pays."""
CLAIM_PROOF_WAIT_MS: Final = 1_000
"""Longest wait of a minute's claim for a proof of life, before the grant is extended."""
STOP_PROOF_WAIT_MS: Final = 1_000
"""Longest wait for the client's proof of life, of a stop that the client did not ask for."""

# --- Live state and presence -----------------------------------------------------

NODE_SILENT_MS: Final = 5_000  # DESIGN: then it is dead
UNCOVERED_MS_DEFAULT: Final = 60_000  # PROTOCOL

# --- Grants and claims -----------------------------------------------------------

GRANT_MARGIN_MS_MIN: Final = 5_000  # DESIGN: one increment, at least this
GRANT_SHRUNKEN_MS: Final = (5_000, 1_000)  # DESIGN: when a counter runs low, in steps
# DESIGN: less than twice what the account's sessions burn in a minute is low.
GRANT_LOW_MINUTES: Final = 2
REST_YIELD_MS: Final = 1_000
"""A session that was recalled takes the whole rest of a counter no earlier than this after: the
one that needs it has taken its share, or has given up."""
RECALL_WAIT_MS: Final = 250  # DESIGN: holders settle and shrink, then the spend again
# The outer deadline of one Redis call: a dead server takes 3.6 s to say so (PITFALLS),
# and a claim must fail early enough to be made again within the margin.
REDIS_TIMEOUT_MS: Final = 1_500
MINUTES_PER_CLAIM_MAX: Final = 256
"""Records that one late claim carries; the rest goes with the next."""
MINUTES_SENT_MAX: Final = 8
"""Numbers of sent minutes that a process keeps of a session, lest one is sent twice. News of one
step arrives twice within seconds, and within that time two or three minutes complete at most."""
LIVE_SESSIONS_PER_ACCOUNT_MAX: Final = 256
"""All that so many do together is done a bounded number in each turn of the loop, and delays
nobody else. Recalled together they may need longer than ``RECALL_WAIT_MS`` on a busy machine: the
spend is answered ``unavailable`` then, and may be asked again."""
GAP_PARTS_MAX: Final = 32
"""Parts of a billed gap that one claim offers, of minutes and of increments each."""
BURN_LINES_EXACT_MAX: Final = 8
"""Sessions of one account that a projection adds up exactly at every instant."""
BURN_SUM_KEPT_MS: Final = 100
"""Time for which one sum serves the ticks of all sessions, where an account has more of them."""

# --- Outbox, flush and record ------------------------------------------------------


# --- Surfaces ----------------------------------------------------------------------


# --- Relations -----------------------------------------------------------------------

# Sums and products that Lua or JavaScript see stay exact.
assert 8 * BALANCE_MICROS_MAX <= SAFE_INTEGER_MAX
assert PRICE_MICROS_MAX * 366 * 24 * 60 <= SAFE_INTEGER_MAX
# A message holds what it must carry.
assert TOKEN_CHARACTERS_MAX + 1024 <= MESSAGE_BYTES_MAX
assert METADATA_BYTES_MAX + 6 * ID_CHARACTERS_MAX + 1024 <= MESSAGE_BYTES_MAX
assert TICK_MS_MIN <= TICK_MS_DEFAULT <= TICK_MS_MAX
# What one sum serves is shown within the shortest interval of ticks.
assert 2 * BURN_SUM_KEPT_MS < TICK_MS_MIN
assert 2 * WARNINGS_MAX <= NOTICES_KEPT_MAX
# Of four limits each threshold, the end of free time, and the stop.
assert 4 * WARNINGS_MAX + 2 <= NOTICES_UNRECORDED_MAX
# A claim and a stop wait for as long as the others who may know of a proof have to answer.
assert min(CLAIM_PROOF_WAIT_MS, STOP_PROOF_WAIT_MS) >= DOUBT_WAIT_MS
assert CLAIM_PROOF_WAIT_MS < GRANT_MARGIN_MS_MIN

assert 10 * UNPROVEN_SHARE >= 9 * (UNPROVEN_SHARE + 1)
# The claims of a process end before it is called dead.
assert REDIS_TIMEOUT_MS < NODE_SILENT_MS
assert sorted(GRANT_SHRUNKEN_MS, reverse=True) == list(GRANT_SHRUNKEN_MS)
assert GRANT_SHRUNKEN_MS[0] <= GRANT_MARGIN_MS_MIN
assert GRANT_SHRUNKEN_MS[-1] > RECALL_WAIT_MS
assert 2 * RECALL_WAIT_MS < REST_YIELD_MS
# Two answers in a row are there within what is granted ahead of time where little is left.
assert GRANT_SHRUNKEN_MS[0] >= 2 * REDIS_TIMEOUT_MS
