"""Bounds of operators' sessions, of their log, and of the feed."""

from typing import Final

from protocol import limits
from server import limits as server_limits
from storage import limits as storage_limits

OPERATOR_SESSION_MS: Final = 12 * 3_600_000
"""How long a cookie of an operator is good."""
REASON_CHARACTERS_MIN: Final = 5
"""Shortest reason that a person gives for an action (PROTOCOL section 4)."""
LOGGED_ANSWER_BYTES_MAX: Final = 8_192
"""Longest answer that the operators' log keeps."""

# --- The feed ------------------------------------------------------------------------

FEED_PAUSE_MS: Final = 250
"""Time between two messages of the feed: at most four a second (DESIGN)."""
ROWS_PER_MESSAGE: Final = 32
"""Rows that a process publishes in one message: 12 KB, read in half a millisecond."""
ORDERED_PER_TURN: Final = 256
"""Rows that are put in order in one turn of the event loop: about a millisecond."""
INTEREST_MS: Final = storage_limits.WATCHED_MS
"""How long a process publishes rows after it last heard that they are wanted."""
INTEREST_RENEWED_MS: Final = 2_000
"""Time between two signs of interest."""
FEED_KEPT_MS: Final = 10_000
"""How long a process keeps its table after the last use: pages and requests come in groups."""
FEED_READY_MS: Final = limits.REDIS_TIMEOUT_MS + 2 * FEED_PAUSE_MS
"""How long a request waits for the rows of the other processes."""
QUESTIONS_MAX: Final = 64
"""Questions for all rows that wait at one process; more are asked again by who misses an answer."""
ORDER_AGE_MS: Final = 1_000
"""Age at which an order that changes with time is built anew."""
MISSING_MAX: Final = 65_536
"""Sessions of other processes that are read from Redis, at most, before the next look."""
SAMPLE_MS: Final = server_limits.PRESENCE_BEAT_MS
"""Time between two figures of a process."""

assert INTEREST_RENEWED_MS + limits.REDIS_TIMEOUT_MS < INTEREST_MS
# A process that hears of the interest by its figures alone does so in time.
assert SAMPLE_MS + limits.REDIS_TIMEOUT_MS < INTEREST_MS
