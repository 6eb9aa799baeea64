"""Who pays for whom in a run, and the session's name."""

from typing import Literal

import msgspec

from protocol import limits
from server.access.principals import tenant_of
from server.gateway.session_start import call_user_hash

Devices = Literal["union", "sum"]
"""How two devices of one participant count: once, or each for itself."""


class Billing(msgspec.Struct, frozen=True, kw_only=True):
    """On whom a participant's time is counted.

    The first billing of a participant stays.
    """

    user_id: str
    """The user of the session: it is in the session's id, and sees it."""
    org_id: str | None = None
    """The session's tenant is this organisation, or the user without one."""
    account_id: str
    """The credit account in the same tenant that pays."""
    kind: str = "call"
    """A kind of the rate card with ``clock = "provider"``."""
    devices: Devices = "union"

    @property
    def tenant(self) -> str:
        """The tenant of the session."""
        return tenant_of(self.org_id, self.user_id)


class CallMapping(msgspec.Struct, frozen=True, kw_only=True):
    """Who pays for whom in a run, by the provider's user ids.

    A participant that is not in it is not metered; apply its facts again when it is.
    """

    participants: dict[str, Billing]


def session_id_of(provider: str, call_session: str, user_id: str) -> str:
    """The id of a participant's session (PROTOCOL section 5).

    Above 128 characters the user part becomes ``~`` and 22 base64url characters of its SHA-256.
    """
    name = f"call:{provider}:{call_session}:{user_id}"
    if len(name) <= limits.ID_CHARACTERS_MAX:
        return name
    return f"call:{provider}:{call_session}:~{call_user_hash(user_id)}"
