"""Bounds of operators' sessions and of their log."""

from typing import Final

OPERATOR_SESSION_MS: Final = 12 * 3_600_000
"""How long a cookie of an operator is good."""
REASON_CHARACTERS_MIN: Final = 5
"""Shortest reason that a person gives for an action (PROTOCOL section 4)."""
LOGGED_ANSWER_BYTES_MAX: Final = 8_192
"""Longest answer that the operators' log keeps."""
