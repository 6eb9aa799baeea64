"""Bounds of log-ins. Those of the whole server are in ``server/limits.py``."""

from typing import Final

LOGIN_TRIES_MAX: Final = 10
"""Wrong passwords for a name from one network, before the next one waits."""
LOGIN_WAIT_MS: Final = 15 * 60_000
"""How long wrong passwords count, and so the longest wait."""
LOGIN_TRIES_KEPT_MAX: Final = 16_384
"""Names and networks whose wrong passwords a process counts."""
LOGIN_CHECK_MS: Final = 250
"""Time between two checks of passwords in a process. Networks take turns. A check takes 160 ms of
a core, and 64 MiB."""
PASSWORD_CHARACTERS_MIN: Final = 12
PASSWORD_CHARACTERS_MAX: Final = 1_024

assert LOGIN_TRIES_MAX * LOGIN_CHECK_MS < LOGIN_WAIT_MS
