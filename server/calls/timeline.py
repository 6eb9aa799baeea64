"""A participant's time in one run, by all facts about it.

The result depends on the set of facts alone, not on their order or repetition. So a fact that comes
late, or a process that begins anew, ends with the same time.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby

import msgspec

from protocol.metering.session import segments_in_order
from server.calls import limits as call_limits
from server.calls.billing import Devices
from server.calls.facts import FactKind
from storage.rows.call_clocks import CallOfSession, KeptFact

Stretch = tuple[int, int]
"""The instants between which a device was there."""


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """When a participant was in a run, up to an instant.

    All instants are in epoch milliseconds, and none lies beyond the instant of the question.
    """

    stretches: tuple[Stretch, ...]
    """In their order, without overlap: the time of any device. A running one ends at the instant of
    the question."""
    total_ms: int
    """The time that counts, by the facts' instants: of any device, or of all together."""
    provider_ms: int | None
    """The same by the provider's own figures; None: it has given none."""
    is_present: bool
    """A device is there, and the run goes on."""
    ended_at: int | None
    """The end of the run; None: it goes on."""

    until: int
    """The instant of the question, or the run's end."""

    @property
    def since(self) -> int:
        """The beginning of the stretch that runs."""
        is_running = bool(self.stretches) and self.stretches[-1][1] >= self.until
        return self.stretches[-1][0] if is_running else self.until

    @property
    def left_at(self) -> int:
        """The end of the last stretch. There must be one."""
        return self.stretches[-1][1]


def timeline(
    facts: Iterable[KeptFact],
    now_ms: int,
    devices: Devices = "union",
    total_provider_ms: int | None = None,
) -> Timeline:
    """Returns the participant's time by ``facts``, as of ``now_ms``.

    ``facts`` are the participant's own, and those of the run as a whole.
    ``total_provider_ms`` is the provider's figure for all devices together, if it was asked.
    """
    by_device: dict[str, list[KeptFact]] = defaultdict(list)
    ends = []
    for fact in facts:
        if fact.kind == FactKind.ENDED:
            ends.append(min(fact.at_ms, now_ms))
        elif fact.kind in (FactKind.JOINED, FactKind.LEFT):
            by_device[fact.device].append(fact)
    ended_at = max(ends, default=None)
    until = now_ms if ended_at is None else ended_at
    of_devices = [_of_device(of_one, until) for of_one in by_device.values()]
    every = [stretch for one in of_devices for stretch in one.stretches]
    union = _union(every)
    separate_ms, union_ms = _length(every), _length(union)
    return Timeline(
        stretches=union,
        total_ms=separate_ms if devices == "sum" else union_ms,
        provider_ms=_provider_ms(
            of_devices, total_provider_ms, counts_once=devices == "union" and union_ms < separate_ms
        ),
        is_present=ended_at is None and any(one.is_open for one in of_devices),
        ended_at=ended_at,
        until=until,
    )


def heard_until(call: CallOfSession, now_ms: int, heard_at: int | None = None) -> int:
    """Up to when the provider's last word about a session's user counts.

    ``heard_at``: it has spoken then too, and the record does not know it yet.
    """
    said_at = [fact.at_ms for fact in call.facts if fact.device]
    said_at += [at for at in (call.swept_at, heard_at) if at is not None]
    return min(now_ms, max(said_at, default=0)) + call_limits.CALL_PROOF_MS


class _Device(msgspec.Struct, frozen=True):
    stretches: list[Stretch]
    provider_stretches: list[Stretch]
    """The same with the provider's durations, where it has given them."""
    has_figure: bool
    is_open: bool


def _of_device(facts: Sequence[KeptFact], until: int) -> _Device:
    """The stretches of one device, which is there or not.

    A departure without an arrival counts nothing, unless the provider says how long it was: absence
    is never billed.
    """
    ours: list[Stretch] = []
    theirs: list[Stretch] = []
    began_at: int | None = None
    has_figure = False
    ordered = sorted(_known_better(facts), key=lambda fact: (fact.at_ms, fact.kind))
    for at_ms, together in groupby(ordered, key=lambda fact: fact.at_ms):
        at, group = min(at_ms, until), list(together)
        joins = any(fact.kind == FactKind.JOINED for fact in group)
        leaves = [fact for fact in group if fact.kind == FactKind.LEFT]
        if joins and began_at is None:
            began_at, joins = at, False
        if leaves:
            figures = [fact.provider_ms for fact in leaves if fact.provider_ms is not None]
            has_figure = has_figure or bool(figures)
            if began_at is None and figures and not (ours and ours[-1][1] >= at - max(figures)):
                began_at = at - max(figures)
            if began_at is not None:
                ours.append((began_at, at))
                theirs.append((at - max(figures), at) if figures else (began_at, at))
            began_at = at if joins else None
    is_open = began_at is not None
    if began_at is not None:
        ours.append((began_at, max(began_at, until)))
        theirs.append(ours[-1])
    return _Device(ours, theirs, has_figure, is_open)


def _known_better(facts: Sequence[KeptFact]) -> list[KeptFact]:
    """The facts without guesses of a leaving whose own instant is known.

    Then the device's next fact is a leaving.
    """
    known = sorted(
        (fact for fact in facts if not fact.is_guess), key=lambda fact: (fact.at_ms, fact.kind)
    )

    def is_known(guess: KeptFact) -> bool:
        # A guess may be as early as the joining itself.
        later = (
            fact.kind
            for fact in known
            if fact.at_ms > guess.at_ms
            or (fact.at_ms == guess.at_ms and fact.kind == FactKind.LEFT)
        )
        return next(later, None) == FactKind.LEFT

    return [fact for fact in facts if not (fact.is_guess and is_known(fact))]


def _provider_ms(
    of_devices: Sequence[_Device], total_ms: int | None, *, counts_once: bool
) -> int | None:
    """The provider's figure; ``counts_once``: devices that overlap count once."""
    if total_ms is not None and not counts_once:
        return total_ms
    if total_ms is None and not any(one.has_figure for one in of_devices):
        return None
    every = [stretch for one in of_devices for stretch in one.provider_stretches]
    return _length(_union(every) if counts_once else every)


def _union(stretches: Iterable[Stretch]) -> tuple[Stretch, ...]:
    """The stretches in order, joined where they touch, without empty ones."""
    return segments_in_order(tuple(one for one in stretches if one[0] < one[1]))


def _length(stretches: Iterable[Stretch]) -> int:
    return sum(to_at - from_at for from_at, to_at in stretches)
