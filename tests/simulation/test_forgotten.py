"""What two failures may lose, and what they may not.

The process that made a step keeps its records. Other processes show what they have received, and
keep nothing.
"""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from tests.simulation.actions import Action, Performer
from tests.simulation.driver import Laboratory
from tests.simulation.traces import FLUSHER, NODE, SEED, act, pay, run, start, wait
from tests.simulation.verdict import Verdict

pytestmark = pytest.mark.usefixtures("quiet_logs")


@pytest.mark.parametrize(
    "arrival",
    [
        act("watch", client="w", node=NODE, session="s1"),
        act("join", client="c-too", node=NODE, session="s1", last_seq=0),
    ],
    ids=["watched", "took part"],
)
def test_end_may_be_lost_though_its_receiver_lives(lab: Laboratory, arrival: Action) -> None:
    """An end may be lost although the process that received it lives.

    One process ended the session and died before the flush; then Redis lost the end. The other
    process has sent the end to its own client and cleared its local session. It kept no record
    (seed 5269).
    """
    clients = run(
        lab,
        pay("cat9", 9_000_000),
        act("kill", name=FLUSHER),
        act("serve", node="node.b"),
        act("start", client="c-s1", node="node.b", user="cat9", kind="second", session="s1"),
        arrival,
        wait(90),
        act("ask", client="c-s1", session="s1", event="stop"),
        wait(5),
        act("kill", name="node.b"),
        wait(60),
        act("empty"),
        wait(180),
    )
    assert "stopped" in [one["type"] for one in clients[-1].messages]


def test_end_is_kept_while_its_maker_lives(lab: Laboratory) -> None:
    """A living process puts back the end that it made.

    Either of the two processes may have made the end.
    """
    until_the_end = [
        pay("cat9", 9_000_000),
        act("kill", name=FLUSHER),
        act("serve", node="node.b"),
        start("s1"),
        act("watch", client="w", node="node.b", session="s1"),
        wait(90),
        act("leave", client="c-s1", session="s1"),
        wait(90),
    ]
    performers: list[Performer] = []
    assert lab.run(SEED, 0, actions=until_the_end, started=performers.append).failure is None
    (maker,) = performers[0].world.forgotten.makers_of("s1")
    other = NODE if maker == "node.b" else "node.b"
    actions = [*until_the_end, act("kill", name=other), wait(60), act("empty"), wait(180)]
    outcome = lab.run(SEED, 0, actions=actions, started=performers.append)
    assert outcome.failure is None
    world = performers[1].world
    assert "stopped" in [one["type"] for one in world.clients[-1].messages]
    assert ("s1", None) not in world.forgotten.pieces


@pytest.mark.parametrize("is_forgotten", [True, False])
def test_told_minute_of_session_without_record(is_forgotten: bool) -> None:
    """Only two failures excuse a missing record (seed 98013)."""
    verdict: Any = object.__new__(Verdict)
    verdict.sessions, verdict.minutes = {}, {"t/s": []}
    verdict.auditor = SimpleNamespace(is_blind=True)
    session_log = SimpleNamespace(person=SimpleNamespace(tenant="t"), session_id="s")
    forgotten = SimpleNamespace(
        pieces={("s", 0)} if is_forgotten else set(), makers_of=lambda _: set()
    )
    verdict.world = SimpleNamespace(session_logs={"s": session_log}, forgotten=forgotten)
    told = {"type": "minute", "session_id": "s", "minute": 0, "seconds": 60}
    client = SimpleNamespace(name="c", messages=[told])
    with nullcontext() if is_forgotten else pytest.raises(AssertionError):
        verdict._check_told(client)
