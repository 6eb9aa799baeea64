"""Calls as their sessions see them: facts, and both clocks' figures."""

import msgspec


class KeptFact(msgspec.Struct, frozen=True):
    """A fact about a participant, or about the run as a whole."""

    device: str
    """The participant's connection; empty for the run as a whole."""
    kind: str
    at_ms: int
    provider_ms: int | None = None
    """The provider's figure for the presence that this fact ended."""
    is_guess: bool = False
    """The last proof that the device was there, and not the instant at which it left."""


class CallOfSession(msgspec.Struct, frozen=True):
    """The run of a call that a session meters."""

    provider: str
    call_session: str
    call_id: str
    rest_name: str
    swept_at: int | None
    """When the provider last said who is there, in epoch ms."""
    participants: tuple[str, ...]
    """The provider's names of the session's user."""
    mapping: msgspec.Raw
    facts: tuple[KeptFact, ...]


class Correction(msgspec.Struct, frozen=True):
    """One entry that brings a session's charge to the provider's clock."""

    entry_id: str
    at: int
    month: str
    """The open month in which its minutes count, by its first day."""
    credits_micros: int
    """Charged further; negative: given back. Until it is made: what is wanted."""
    minutes: int
    """Counted further; negative: given back."""
    reason: str
    is_done: bool = False


class ProviderDuration(msgspec.Struct, frozen=True, kw_only=True):
    """Both clocks of a call's session. Key: ``tenant``, ``session_id``."""

    tenant: str
    session_id: str
    provider: str
    call_id: str
    call_session: str
    user_id: str
    account_id: str
    started_at: int
    ended_at: int
    elapsed_ms: int
    """Counted time by our clock; 0 where the session never began."""
    facts_ms: int
    """By the instants of the facts."""
    provider_ms: int | None
    """By the provider's own figures; None without one."""
    asked_ms: int | None
    """What the provider said of all devices together when it was asked after the end."""
    reason: str
    """Why there is a correction, or why a difference was left; empty: there is none."""
    uncollected_ms: int = 0
    """Time that became known too late for the balance or the limits of that moment."""
    uncollected_micros: int = 0
    uncollected_minutes: int = 0
    """Signed: minutes that were to be given back, and that the month did not have."""
    stretches: tuple[tuple[int, int], ...]
    """When the participant was there, by the facts."""
    corrections: tuple[Correction, ...] = ()
    version: int = 0
    """Rises with each writing; 0: not written yet."""

    @property
    def difference_ms(self) -> int | None:
        """The provider's time less ours; None without a figure of the provider."""
        return None if self.provider_ms is None else self.provider_ms - self.elapsed_ms
