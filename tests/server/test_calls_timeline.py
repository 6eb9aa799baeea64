"""A participant's time by all facts, in whatever order they came."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.calls.timeline import Timeline, timeline
from storage.rows.call_clocks import KeptFact

NOW = 1_000_000


def joined(at: int, device: str = "a/1") -> KeptFact:
    return KeptFact(device, "joined", at)


def left(at: int, device: str = "a/1", provider_ms: int | None = None) -> KeptFact:
    return KeptFact(device, "left", at, provider_ms)


def guess(at: int, device: str = "a/1") -> KeptFact:
    return KeptFact(device, "left", at, is_guess=True)


def ended(at: int) -> KeptFact:
    return KeptFact("", "ended", at)


def of(*facts: KeptFact, **how: object) -> Timeline:
    results = {timeline(order, NOW, **how) for order in permutations(facts)}  # type: ignore[arg-type]
    (only,) = results  # the order of the facts changes nothing
    return only


@pytest.mark.parametrize(
    ("facts", "stretches", "is_present"),
    [
        ((joined(1000),), ((1000, NOW),), True),
        ((joined(1000), left(5000)), ((1000, 5000),), False),
        ((joined(1000), left(5000), joined(7000)), ((1000, 5000), (7000, NOW)), True),
        ((joined(1000), left(5000), joined(5000)), ((1000, NOW),), True),
        ((joined(1000), joined(2000), left(5000)), ((1000, 5000),), False),
        ((left(5000),), (), False),  # absence is never billed
        ((left(5000, provider_ms=3000),), ((2000, 5000),), False),
        ((joined(1000), ended(5000)), ((1000, 5000),), False),
        ((joined(6000), ended(5000)), (), False),
        ((joined(1000), left(NOW + 5000)), ((1000, NOW),), False),
        ((ended(5000),), (), False),
        ((), (), False),
        # A sweep's guess counts until the leaving itself is known, or the device comes back.
        ((joined(1000), guess(1000)), (), False),
        ((joined(1000), guess(1000), left(5000)), ((1000, 5000),), False),
        ((joined(1000), guess(3000), left(5000), ended(8000)), ((1000, 5000),), False),
        (
            (joined(1000), guess(3000), joined(4000), left(5000)),
            ((1000, 3000), (4000, 5000)),
            False,
        ),
    ],
)
def test_one_device(
    facts: tuple[KeptFact, ...], stretches: tuple[tuple[int, int], ...], is_present: bool
) -> None:
    line = of(*facts)
    assert (line.stretches, line.is_present) == (stretches, is_present)
    assert line.total_ms == sum(end - begin for begin, end in stretches)


def test_two_devices_count_once_or_each() -> None:
    facts = (joined(1000), left(5000), joined(3000, "a/2"), left(8000, "a/2"))
    assert of(*facts).total_ms == 7000
    assert of(*facts, devices="sum").total_ms == 9000
    assert of(*facts).stretches == of(*facts, devices="sum").stretches == ((1000, 8000),)
    assert of(*facts).left_at == 8000


def test_since_is_the_stretch_that_runs() -> None:
    assert of(joined(1000)).since == 1000
    assert of(joined(1000), left(5000), joined(NOW)).since == NOW
    assert of(joined(1000), joined(3000, "a/2"), left(5000)).since == 1000


def test_the_providers_own_figure() -> None:
    assert of(joined(1000), left(5000)).provider_ms is None
    assert of(joined(1000), left(5000, provider_ms=4400)).provider_ms == 4400
    two = (joined(1000), left(5000, provider_ms=4400), joined(3000, "a/2"), left(8000, "a/2"))
    assert of(*two).provider_ms == 8000 - 600
    assert of(*two, devices="sum").provider_ms == 9400
    assert of(*two, devices="sum", total_provider_ms=9000).provider_ms == 9000
    assert of(joined(1000), left(5000), total_provider_ms=4100).provider_ms == 4100
    # What the provider said of all devices together says nothing about their union.
    assert of(*two, total_provider_ms=9000).provider_ms == 7400


@given(
    st.lists(
        st.builds(
            KeptFact,
            st.sampled_from(["a/1", "a/2"]),
            st.sampled_from(["joined", "left"]),
            st.integers(0, 2 * NOW),
        ),
        max_size=8,
    ),
    st.randoms(),
)
def test_order_and_repetition_change_nothing(facts: list[KeptFact], random: object) -> None:
    once = timeline(facts, NOW)
    twice = facts + facts
    random.shuffle(twice)  # type: ignore[attr-defined]
    assert timeline(twice, NOW) == once
    assert all(begin < end <= NOW for begin, end in once.stretches)
    assert once.total_ms <= timeline(facts, NOW, "sum").total_ms
