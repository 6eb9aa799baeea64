"""Bills of calls whose processes die anywhere are the true ones."""

import pytest

from tests.calls.call_histories import Engine, play_history
from tests.calls.one_death import play_one_death
from tests.simulation.driver import Laboratory
from tests.simulation.virtual_redis import Mutation

SHORT, LONG, BATCH = 6, 1_000, 20
pytestmark = pytest.mark.usefixtures("quiet_logs")


@pytest.mark.parametrize("seed", range(SHORT))
def test_each_bill_is_the_true_call_s_wherever_a_process_dies(lab: Laboratory, seed: int) -> None:
    assert play_history(seed, lab)


def test_time_that_became_known_late_makes_no_debt_beside_another_session(lab: Laboratory) -> None:
    # A process takes over two sessions of an account that has little left: one has run on unknown,
    # and the other is settled later than that.
    assert play_history(478, lab)


@pytest.mark.full
@pytest.mark.parametrize("first", range(0, LONG, BATCH))
def test_a_thousand_histories(lab: Laboratory, first: int) -> None:
    for seed in range(first, first + BATCH):
        assert play_history(seed, lab)


def test_the_same_history_has_the_same_bills(lab: Laboratory) -> None:
    assert play_history(3, lab) == play_history(3, lab)


def test_the_auditor_notices_a_script_that_charges_wrongly(lab: Laboratory) -> None:
    charge = "call('HINCRBY', KEYS[4], 'balance', whole(-step.charge))"
    wrong = Mutation("commit", charge, charge.replace("step.charge", "step.charge - 1"))
    with pytest.raises(AssertionError, match="balance"):
        play_history(0, lab, [wrong])


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("engine", ["redis", "postgres"])
def test_a_death_at_some_messages(lab: Laboratory, engine: Engine, after: bool) -> None:
    die_at(lab, engine, after, first=31, step=83)


@pytest.mark.full
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("engine", ["redis", "postgres"])
@pytest.mark.parametrize("first", range(8))
def test_a_death_at_each_message(lab: Laboratory, engine: Engine, after: bool, first: int) -> None:
    die_at(lab, engine, after, first=first, step=8)


def die_at(lab: Laboratory, engine: Engine, after: bool, *, first: int, step: int) -> None:
    """Dies at every ``step``-th message to an engine."""
    message = first
    while not play_one_death(lab, engine, message, after=after):
        message += step
    assert message > first
