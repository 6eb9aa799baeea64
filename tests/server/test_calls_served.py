"""A call through the server: facts in, a session, a receipt."""

from server.calls.facts import FactKind
from server.calls.service import Calls
from tests.fixtures.server import TestServer
from tests.server.api import ask
from tests.server.call_facts import fact

SESSION = "/v1/sessions/call:stream:run-1:ann"


async def test_facts_make_a_session_that_its_user_watches(server: TestServer) -> None:
    calls: Calls = server.app.state.calls
    now_ms = server.process.clock.now

    async def heard(kind: FactKind, participant: str | None) -> None:
        told = fact(
            kind, participant, provider="stream", call_session="run-1", at_ms=now_ms(),
            key=f"served-{kind}-{participant}",
        )  # fmt: skip
        await calls.inbox.keep([told])
        await calls.applier.idle()

    await heard(FactKind.JOINED, "ann")
    live = (await ask(server, "GET", SESSION, server.token("ann"))).json()
    assert (live["state"], live["kind"]) == ("active", "call")
    client = await server.login("ann")
    watched = await client.ask("watch", session_id="call:stream:run-1:ann")
    assert watched["state"] == "active"
    await heard(FactKind.LEFT, "ann")
    await heard(FactKind.ENDED, None)
    stopped = await client.until("stopped")
    assert stopped["reason"] == "call_ended"
    bill = (await ask(server, "GET", SESSION, server.token("ann"))).json()
    assert (bill["reason"], bill["kind"]) == ("call_ended", "call")
    assert bill["elapsed_ms"] == stopped["receipt"]["elapsed_ms"]
