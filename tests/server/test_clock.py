"""The clock of a process is slewed, and never stepped."""

import itertools

import pytest

from server import limits as server_limits
from server.runtime.clock import ClusterClock, Sample

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

STEPS = [HOUR_MS, -HOUR_MS, DAY_MS, -DAY_MS]


class Quartz:
    """A monotonic clock that is set by hand, in seconds."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def anchor(
    clock: ClusterClock, quartz: Quartz, cluster_ms: float, redis_ms: float, sent_at: float
) -> None:
    """An anchor: cluster time ``cluster_ms`` when Redis answered ``redis_ms``.

    The question was sent at ``sent_at``.
    """
    clock.set(Sample.of(redis_ms, sent_at, quartz()), redis_ms - cluster_ms)


@pytest.mark.parametrize("step_ms", STEPS)
def test_a_step_is_noticed_and_not_followed(step_ms: int) -> None:
    quartz = Quartz()
    clock = ClusterClock(quartz)
    anchor(clock, quartz, 5_000.0, 5_000.0, quartz())
    clock.observe(5_000.0 + step_ms, quartz())
    assert (clock.now(), clock.stepped_ms) == (5_000, step_ms)
    # Both quartzes run on alike; then it is stepped back.
    quartz.at += 60
    clock.observe(65_000.0 + step_ms, quartz())
    assert (clock.now(), clock.stepped_ms) == (65_000, step_ms)
    clock.observe(65_000.0, quartz())
    assert (clock.now(), clock.stepped_ms) == (65_000, 0)


@pytest.mark.parametrize("step_ms", [0, *STEPS])
def test_drift_is_followed_slowly_before_and_after_a_step(step_ms: int) -> None:
    quartz = Quartz()
    clock = ClusterClock(quartz)
    anchor(clock, quartz, 5_000.0, 5_000.0 + step_ms, quartz())
    for beat in range(1, 2_001):
        quartz.at += 1
        # Redis's quartz is faster by 20 parts in a million.
        clock.observe(5_000.0 + step_ms + beat * 1_000.02, quartz())
    assert abs(clock.now() - (5_000 + 2_000 * 1_000.02)) <= 2
    assert clock.stepped_ms == step_ms


def test_what_takes_long_to_be_said_moves_nothing() -> None:
    quartz = Quartz()
    clock = ClusterClock(quartz)
    anchor(clock, quartz, 5_000.0, 5_000.0, quartz())
    sent_at = quartz()
    quartz.at += (server_limits.CLOCK_DRIFT_MS_MAX + 1) / 1000
    clock.observe(5_000.0 + DAY_MS, sent_at)
    assert clock.stepped_ms == 0
    assert clock.now() - 5_000 == server_limits.CLOCK_DRIFT_MS_MAX + 1


def test_the_nudge_is_bounded() -> None:
    quartz = Quartz()
    clock = ClusterClock(quartz)
    anchor(clock, quartz, 5_000.0, 5_000.0, quartz())
    for _ in range(20):
        clock.observe(5_000.0 + server_limits.CLOCK_DRIFT_MS_MAX, quartz())
    assert clock.now() - 5_000 == 20 * server_limits.CLOCK_NUDGE_MS_MAX == 1


@pytest.mark.parametrize("off_ms", [-700, 700])
def test_the_error_of_a_slow_answer_is_slewed_away(off_ms: int) -> None:
    """The clock slews the error of a slow answer away.

    The answer took 1.5 s, nearly all of it on one of its two ways.
    """
    quartz = Quartz()
    clock = ClusterClock(quartz)
    sent_at = quartz()
    quartz.at += 1.5
    anchor(clock, quartz, 100_000.0, 100_000.0, sent_at)
    true_ms = 100_750.0 + off_ms
    assert clock.now() == 100_750
    shown = []
    for _ in range(200):
        quartz.at += 1
        true_ms += 1_000
        shown.append(clock.now())
        sent_at = quartz()
        quartz.at += 0.002
        true_ms += 2
        clock.observe(true_ms - 1, sent_at)
        shown.append(clock.now())
    assert abs(clock.now() - true_ms) <= 2
    assert clock.stepped_ms == 0
    assert shown == sorted(shown)
    # A bill is off by half of a percent meanwhile, at most.
    lasted = [after - before for before, after in itertools.pairwise(shown[::2])]
    assert all(abs(ms - 1_002) <= 6 for ms in lasted)


def test_only_a_clock_that_may_lag_follows_the_others() -> None:
    quartz = Quartz()
    clock = ClusterClock(quartz)
    clock.set(Sample(100_000.0, quartz() * 1_000, 0.0), 90_000.0, behind_ms=2_500)
    assert (clock.now(), clock.stepped_ms) == (10_000, 90_000)
    for beat in range(600):
        quartz.at += 1
        clock.observe(101_000.0 + beat * 1_000, quartz())
        clock.follow(10_000 + 2_000 + (beat + 1) * 1_000)
    assert clock.now() == 10_000 + 2_000 + 600_000
    before = clock.now()
    clock.follow(before + 60_000)
    assert clock.now() == before
    anchor(clock, quartz, 5_000.0, 5_000.0, quartz())
    clock.follow(6_000)
    assert clock.now() == 5_000
