"""Found in simulated worlds: what an account's sessions get, and when.

See ``traces``.
"""

import pytest

from tests.simulation.actions import Action, Performer
from tests.simulation.clients import SimulatedClient
from tests.simulation.driver import Laboratory
from tests.simulation.mixes import world_of
from tests.simulation.traces import NODE, act, pay, run, spend, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


def _run(lab: Laboratory, seed: int, *actions: Action) -> list[SimulatedClient]:
    """Runs actions in the world of a seed. Raises the auditor's complaint."""
    performers: list[Performer] = []
    outcome = lab.run(seed, 0, actions=actions, mix=world_of(seed, 0)[1], started=performers.append)
    if outcome.failure is not None:
        raise outcome.failure
    return performers[0].world.clients


def test_session_with_its_share_does_not_claim_in_a_loop(lab: Laboratory) -> None:
    """Sessions without Redis had used their shares when Redis answered again.

    A session claimed at the same instant without end: Redis gave it nothing more, and the next
    claim was due at once (seed 91082).
    """
    ann = "ann91082"
    _run(
        lab,
        91082,
        start("s105", ann, "day"),
        wait(30),
        pay(ann, 142_857, "p115"),
        pay(ann, 142_857, "p123"),
        pay(ann, 2_166_666, "p135"),
        start("s137", ann, "day"),
        start("s139", ann, "day"),
        wait(0.9),
        act("redis_away", ms=70_000),
        wait(30),
        wait(60),
    )


def test_process_that_joins_knows_of_an_earlier_payment(lab: Laboratory) -> None:
    """A payment arrives just before a new process takes over.

    The last socket elsewhere goes, and the new process joins. No process claimed with the new
    credits: the session stopped beside them (seed 92113).
    """
    bob = "bob92113"
    _run(
        lab,
        92113,
        act("serve", node="node.37"),
        act("serve", node="node.39"),
        wait(30),
        act("start", client="c58", node="node.37", user=bob, kind="chat", session="s59"),
        act("kill", name="node.37"),
        wait(8),
        act("join", client="c66", node="node.39", session="s59", last_seq=0),
        act("join", client="c67", node=NODE, session="s59", last_seq=0),
        act("close", client="c66"),
        pay("ann92113", 16_666, "p69"),
        wait(90),
    )


def test_each_increment_of_a_billed_gap_can_be_its_end(lab: Laboratory) -> None:
    """A client comes back while another session empties the account.

    Of a long gap, only every second increment was offered: the session stopped with credits for
    one more (seed 91109).
    """
    cat = "cat91109"
    _run(
        lab,
        91109,
        pay(cat, 1_150_000, "p117"),
        wait(30),
        start("s176", cat, "capped", "c175"),
        start("s178", cat, "capped", "c177"),
        wait(0.001),
        act("cut", client="c175"),
        wait(35),
        act("join", client="c180", node=NODE, session="s176", last_seq=0),
        wait(60),
    )


def test_session_that_begins_takes_little_while_another_waits(lab: Laboratory) -> None:
    """A start waits for its share, and another session starts meanwhile.

    That one was not recalled, and held more than it needed: the first was refused as if a process
    had not answered, and not for want of credits (seed 92248).
    """
    ann = "ann92248"
    clients = _run(
        lab,
        92248,
        pay(ann, 20_000_000, "p41"),
        spend(ann, 250_000, "s42"),
        start("s53", ann, "dear", "c52"),
        wait(30),
        start("s60", "bob92248", "six", "c59"),
        start("s63", ann, "six", "c62"),
        start("s69", ann, "capped", "c68"),
        wait(1),
    )
    (refusal,) = [one for one in clients[2].messages if one["type"] == "error"]
    assert refusal["code"] == "limit_reached"


def test_month_ends_grant_inside_increment(lab: Laboratory) -> None:
    """A month ends a grant inside an increment (seed 700501).

    The credits cover that increment, but not another one.
    """
    clients = run(
        lab,
        pay("ann9", 3_040_000),
        act("limit", user="ann9", minutes=3, of_org=False),
        start("s1", user="ann9", kind="lesson"),
        wait(200),
    )
    (stopped,) = (one for one in clients[0].messages if one["type"] == "stopped")
    assert (stopped["limit"], stopped["receipt"]["elapsed_ms"]) == ("member_minutes", 180_000)
