"""Found in simulated worlds (see ``traces``): requests of clients that go.

The client of each is gone before the request is answered.
"""

import pytest

from tests.simulation.driver import Laboratory
from tests.simulation.traces import NODE, act, mishaps, pay, run, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


@pytest.mark.parametrize("event", ["stop", "pause"])
@pytest.mark.parametrize("comes_back", [True, False])
def test_request_in_doubt_outlives_its_socket(
    lab: Laboratory, event: str, comes_back: bool
) -> None:
    """A request of a doubt is carried out although its socket closes.

    The request waited for the answer of an earlier client. Its process cleared the session
    meanwhile, the request was lost, and the session ran on (seed 500278).
    """
    back = act("join", client="again", node=NODE, session="s1", last_seq=0)
    clients = run(
        lab,
        pay("cat9", 9_000_000),
        act("serve", node="node.b"),
        act("start", client="first", node="node.b", user="cat9", kind="second", session="s1"),
        act("cut", client="first"),
        wait(18.9),
        act("join", client="second", node=NODE, session="s1", last_seq=0),
        wait(0.5),
        act("ask", client="second", session="s1", event=event),
        act("close", client="second"),
        *([wait(0.3), back] if comes_back else []),
        wait(5),
        act("join", client="last", node="node.b", session="s1", last_seq=0),
    )
    answer = clients[-1].messages[0]
    if event == "pause":
        assert answer["elapsed_ms"] == 500
        return
    (receipt,) = (one["receipt"] for one in answer["missed"] if one["type"] == "stopped")
    assert (receipt["reason"], receipt["elapsed_ms"]) == ("client", 500)


def test_unanswered_start_leaves_no_unserved_session(lab: Laboratory) -> None:
    """Redis carries out a start whose process has given up.

    No process was noted for such a session. When the process could not repeat the start, because
    it did not know what others had used of the account, the session ran without end, and held its
    credits (seed 500072).
    """
    run(
        lab,
        pay("ann9", 2_000_000),
        start("s1", user="ann9", kind="minute"),
        act("cut", client="c-s1"),
        start("s2", user="ann9", kind="minute"),
        start("s3", user="ann9", kind="minute"),
        act("slow_redis", delays=[5_000], ms=90_000),
        wait(600),
    )


@pytest.mark.parametrize("mishap", [["lost", 1000], ["late", 1000], ["unanswered", 1000]])
@pytest.mark.parametrize("joins", [1, 2])
def test_join_before_repeat_of_loss_bills_no_absence(
    lab: Laboratory, mishap: list[object], joins: int
) -> None:
    """A client is back before its loss is recorded.

    The process gave up that message, and billed the time without a client.
    """
    back = []
    for number in range(joins):
        name = f"back-{number}"
        back += [wait(0.5), act("join", client=name, node=NODE, session="s1", last_seq=0)]
        if number + 1 < joins:
            back += [wait(0.1), act("close", client=name)]
    run(
        lab,
        pay("cat9", 9_000_000),
        start("s1"),
        wait(5),
        mishaps(NODE, "redis", mishap),
        act("close", client="c-s1"),
        *back,
        wait(25),
    )


@pytest.mark.parametrize("event", ["stop", "pause"])
def test_request_behind_two_doubts_ends_time_at_the_newest_proof(
    lab: Laboratory, event: str
) -> None:
    """Time ends where the client was last heard.

    A probe of the second doubt is answered while the request waits for the first (seed 700953).
    """
    run(
        lab,
        act("serve", node="node.b"),
        wait(30),
        act("start", client="first", node="node.b", user="cat9", kind="pair", session="s1"),
        wait(5),
        act("join", client="second", node=NODE, session="s1", last_seq=2),
        act("cut", client="first"),
        wait(0.2),
        act("join", client="third", node="node.b", session="s1", last_seq=0),
        act("ask", client="second", session="s1", event=event),
    )


@pytest.mark.parametrize("watched", [None, NODE, "node.b"])
@pytest.mark.parametrize("mishap", [["lost", 1000], ["late", 1000]])
@pytest.mark.parametrize("away", [0.5, 0.9])
def test_join_elsewhere_before_repeat_of_loss_bills_no_absence(
    lab: Laboratory, watched: str | None, mishap: list[object], away: float
) -> None:
    """A client is back at another process before its loss is recorded.

    The process that it has left knows when, and says so.
    """
    watch = [] if watched is None else [act("watch", client="c-w", node=watched, session="s1")]
    run(
        lab,
        pay("cat9", 9_000_000),
        act("serve", node="node.b"),
        start("s1"),
        *watch,
        wait(5),
        mishaps(NODE, "redis", mishap),
        act("close", client="c-s1"),
        wait(away),
        act("join", client="back", node="node.b", session="s1", last_seq=0),
        wait(25),
    )
