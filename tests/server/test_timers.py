"""The timer wheel fires due timers in order and frees cancelled ones."""

import random

from server import limits as server_limits
from server.runtime.timers import Timer, Timers, Wheel


class SteppedClock:
    """A clock that the test sets."""

    now_ms = 0

    def now(self) -> int:
        return self.now_ms


def nothing(_: int) -> None:
    pass


def test_deadlines_come_before_ticks_and_each_once() -> None:
    timers, fired = Timers(SteppedClock()), list[str]()
    timers.tick(5, lambda _: fired.append("tick 5"))
    timers.deadline(5, lambda _: fired.append("deadline 5"))
    timers.deadline(9, lambda _: fired.append("deadline 9"))
    cancelled = timers.deadline(4, lambda _: fired.append("cancelled"))
    cancelled.cancel()
    timers.run_due(4)
    assert fired == []
    timers.run_due(8)
    assert fired == ["deadline 5", "tick 5"]
    timers.run_due(20)
    assert fired == ["deadline 5", "tick 5", "deadline 9"]
    assert timers.next_at is None


def test_a_timer_may_cancel_another_one_of_its_millisecond() -> None:
    timers, fired = Timers(SteppedClock()), list[int]()
    second: list[Timer] = []
    timers.deadline(1, lambda _: second[0].cancel())
    second.append(timers.deadline(1, fired.append))
    timers.run_due(1)
    assert fired == []
    assert timers._deadlines._cancelled == 0


def test_what_was_cancelled_long_before_its_time_does_not_stay() -> None:
    """A token that is good for years, renewed again and again."""
    timers = Timers(SteppedClock())
    kept = [timers.deadline(10**12 + n, nothing) for n in range(100)]
    for number in range(50_000):
        timers.deadline(10**12 + number % 7_000, nothing).cancel()
        assert timers._deadlines._size <= 2 * server_limits.TIMERS_CANCELLED_MAX + len(kept)
    assert sum(1 for _ in timers._deadlines) == timers._deadlines._size
    assert {timer for timer in timers._deadlines if not timer.is_cancelled} == set(kept)
    assert len(timers._deadlines._order) == len(timers._deadlines._buckets)


def test_whatever_is_cancelled_the_others_fire_in_their_order() -> None:
    rng = random.Random(4)
    wheel, expected = Wheel(), []
    for _ in range(3 * server_limits.TIMERS_CANCELLED_MAX):
        timer = Timer(rng.randrange(5_000), nothing)
        wheel.add(timer)
        if rng.random() < 0.9:
            timer.cancel()
        else:
            expected.append(timer.at)
    fired: list[int] = []
    while due := wheel.pop_due(5_000):
        fired += [timer.at for timer in due if not timer.is_cancelled]
    assert fired == sorted(expected)
    assert (wheel._size, wheel._cancelled) == (0, 0)


def test_hundreds_of_ticks_of_one_millisecond_share_turns() -> None:
    """Hundreds of ticks in one millisecond share turns with other timers.

    Sessions that began in one instant have their ticks in one millisecond ever after.
    """
    timers, fired = Timers(SteppedClock()), list[str]()
    for _ in range(1_000):
        timers.tick(5, lambda _: fired.append("tick"))
    gone = timers.tick(5, lambda _: fired.append("gone"))
    timers.run_due(5)
    assert len(fired) == server_limits.TICKS_PER_TURN_MAX
    gone.cancel()
    timers.deadline(6, lambda _: fired.append("deadline"))
    assert timers.next_at == 5
    timers.run_due(6)
    assert fired[server_limits.TICKS_PER_TURN_MAX] == "deadline"
    for _ in range(1_000 // server_limits.TICKS_PER_TURN_MAX):
        before = len(fired)
        timers.run_due(6)
        assert len(fired) <= before + server_limits.TICKS_PER_TURN_MAX
    assert fired.count("tick") == 1_000
    assert "gone" not in fired
