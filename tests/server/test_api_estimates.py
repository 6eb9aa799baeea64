"""An estimate, and the start that follows it, show the same figures."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from protocol.metering.session import Identity, free_key
from protocol.metering.states import Event
from protocol.metering.terms import Terms
from server.api.estimates import _estimate
from server.sessions.local_session import LocalSession
from tests.fixtures.server import API_KEY, SocketClient, StartServer, TestServer
from tests.protocol.examples import CREDIT, TERMS
from tests.server.api import advance, ask, assert_problem, grant
from tests.server.minutes import keep_off_month_ends, limit_member, limit_org, track
from tests.simulation.cluster import Cluster, Node

CARD = """
[kinds.chat]
free_seconds = 60
credits_per_minute = "1"
increment_seconds = [1, 1]

[kinds.talk]
credits_per_minute = "2.5"
increment_seconds = [60, 30]
max_session_seconds = 900

[kinds.pair]
free_seconds = 90
free_scope = "pair"
credits_per_minute = "1"
increment_seconds = [1, 1]

[kinds.day]
free_seconds = 120
free_scope = "day"
credits_per_minute = "1"
increment_seconds = [1, 1]

[kinds.recording]
credits_per_minute = "0"
counts_minutes = true
increment_seconds = [60, 60]

[kinds.lesson]
credits_per_minute = "0.5"
counts_minutes = true
increment_seconds = [30, 6]
max_live_sessions = 1

[tiers.free]
allotment = "0"
"""
SHOWN = ("credits_per_minute", "limit", "speed")


@pytest.fixture
async def server(start_server: StartServer, tmp_path: Path) -> TestServer:
    rates = tmp_path / "rates.toml"
    rates.write_text(CARD.partition("[tiers.free]")[0])
    made = await start_server(rates=rates)
    keep_off_month_ends(made)
    return made


def path(query: str = "", account: str = "ann") -> str:
    return f"/v1/accounts/{account}/estimate?{query}"


async def estimated(server: TestServer, query: str, bearer: str | None = None) -> Any:
    response = await ask(server, "GET", path(query), bearer or server.token("ann", org="acme"))
    assert response.status_code == 200, response.text
    return response.json()


async def funded(server: TestServer, amount: str) -> None:
    response = await grant(server, amount, "g1", "/v1/accounts/ann/grants?org=acme")
    assert response.status_code == 201, response.text


async def begun(client: SocketClient, session_id: str, kind: str, **fields: Any) -> Any:
    return await client.ask("start", session_id=session_id, kind=kind, **fields)


def assert_same(estimate: Any, started: Any, since_ms: int = 5_000) -> None:
    """Compares the two; real time passes in between."""
    if started["type"] == "error":
        assert (started["code"], started["limit"]) == ("limit_reached", estimate["limit"])
        assert (estimate["can_start"], estimate["remaining_ms"]) == (False, 0)
        return
    assert estimate["can_start"]
    for name in SHOWN:
        assert estimate[name] == started[name], name
    for mine, theirs in [
        (estimate["remaining_ms"], started["remaining_ms"]),
        (estimate["free_remaining_ms"], started["free_remaining_ms"]),
        *((one["remaining_ms"], other["remaining_ms"])
          for one, other in zip(estimate["limits"], started["limits"], strict=True)),
    ]:  # fmt: skip
        assert mine == theirs or 0 <= mine - theirs <= since_ms
    assert [one["limit"] for one in estimate["limits"]] == [
        one["limit"] for one in started["limits"]
    ]


# --- Through the real server -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["chat", "talk", "pair", "day", "recording", "lesson"])
@pytest.mark.parametrize("amount", ["0.000001", "0.75", "20"])
async def test_start_shows_what_was_estimated(server: TestServer, kind: str, amount: str) -> None:
    await funded(server, amount)
    await limit_member(server, 7)
    await limit_org(server, 9)
    client = await server.login("ann", org="acme", counterparts=["advisor"])
    token = server.token("ann", org="acme", counterparts=["advisor"])
    estimate = await estimated(server, f"kind={kind}&counterpart=advisor", token)
    assert_same(estimate, await begun(client, "s1", kind, counterpart_id="advisor"))


async def test_free_time_is_what_the_scope_leaves(server: TestServer) -> None:
    await funded(server, "5")
    token = server.token("ann", org="acme", counterparts=["advisor", "other"])
    client = await server.login("ann", org="acme", counterparts=["advisor", "other"])
    for kind, whole_ms in (("pair", 90_000), ("day", 120_000)):
        assert (await estimated(server, f"kind={kind}&counterpart=advisor", token))[
            "free_remaining_ms"
        ] == whole_ms
        await begun(client, f"{kind}-1", kind, counterpart_id="advisor")
        advance(server, 30_000)
        await client.ask("ping")
        await client.ask("stop", session_id=f"{kind}-1")
        estimate = await estimated(server, f"kind={kind}&counterpart=advisor", token)
        assert whole_ms - 40_000 < estimate["free_remaining_ms"] <= whole_ms - 30_000
        assert_same(estimate, await begun(client, f"{kind}-2", kind, counterpart_id="advisor"))
    assert (await estimated(server, "kind=pair&counterpart=other", token))[
        "free_remaining_ms"
    ] == 90_000
    # A counterpart that the browser alone names may be made up.
    own = await estimated(server, "kind=pair&counterpart=other")
    assert own["free_remaining_ms"] == 0
    backend = await estimated(server, "kind=pair&counterpart=other&org=acme", API_KEY)
    assert backend["free_remaining_ms"] == 90_000


async def test_other_sessions_burn_too(server: TestServer) -> None:
    await funded(server, "12")
    client = await server.login("ann", org="acme")
    alone = await estimated(server, "kind=talk")
    for number in range(2):
        await begun(client, f"chat-{number}", "chat")
    estimate = await estimated(server, "kind=talk")
    assert estimate["remaining_ms"] < alone["remaining_ms"]
    assert_same(estimate, await begun(client, "talk", "talk"))


async def test_months_bound_it_and_an_estimate_changes_nothing(server: TestServer) -> None:
    await limit_member(server, 3)
    assert (await track(server, 5)).status_code == 200
    before = await server.process.live.redis.dbsize()
    for _ in range(3):
        estimate = await estimated(server, "kind=recording")
        assert (estimate["limit"], estimate["remaining_ms"]) == ("member_minutes", 120_000)
    assert await server.process.live.redis.dbsize() <= before + 1  # the account is loaded
    assert not server.process.registry.local_sessions
    client = await server.login("ann", org="acme")
    assert_same(estimate, await begun(client, "r1", "recording"))
    assert (await track(server, 4, session_id="rec-2")).status_code == 200
    await client.ask("stop", session_id="r1")
    used_up = await estimated(server, "kind=recording")
    assert (used_up["can_start"], used_up["limit"]) == (False, "member_minutes")
    assert_same(used_up, await begun(client, "r2", "recording"))


async def test_prepared_session_has_its_own_terms(server: TestServer) -> None:
    await funded(server, "10")
    prepared = {
        "session_id": "s1", "kind": "pair", "user_id": "ann", "counterpart_id": "advisor",
        "credits_per_minute": "4", "free_seconds": 30, "max_session_seconds": 100,
    }  # fmt: skip
    made = await ask(server, "POST", "/v1/sessions?org=acme", json=prepared)
    assert made.status_code == 201, made.text
    estimate = await estimated(server, "session_id=s1")
    assert (estimate["credits_per_minute"], estimate["free_remaining_ms"]) == ("4", 30_000)
    assert (estimate["limit"], estimate["remaining_ms"]) == ("session_cap", 100_000)
    assert estimate == {
        **await estimated(server, "session_id=s1&org=acme", API_KEY),
        "server_time_at": estimate["server_time_at"],
    }
    client = await server.login("ann", org="acme")
    assert_same(estimate, await begun(client, "s1", "pair"))
    token = server.token("ann", org="acme")
    started = await ask(server, "GET", path("session_id=s1"), token)
    assert_problem(started, 409, "session_exists")
    await client.ask("stop", session_id="s1")
    ended = await ask(server, "GET", path("session_id=s1"), token)
    assert_problem(ended, 409, "session_ended")


async def test_what_a_start_refuses_an_estimate_refuses(
    server: TestServer, start_server: StartServer
) -> None:
    token = server.token("ann", org="acme")
    only_chat = server.token("ann", org="acme", kinds=["chat"], sessions=["s1"])
    prepared = {"session_id": "theirs", "kind": "chat", "user_id": "ben"}
    assert (await ask(server, "POST", "/v1/sessions?org=acme", json=prepared)).status_code == 201
    for query, bearer, status, code in (
        ("", token, 400, "bad_message"),
        ("kind=a/b", token, 400, "bad_message"),
        ("kind=nothing", token, 422, "unknown_kind"),
        ("kind=talk", only_chat, 403, "forbidden"),
        ("session_id=s2&kind=chat", only_chat, 403, "forbidden"),
        ("session_id=theirs", token, 403, "forbidden"),
        ("kind=chat&user=ben", token, 403, "forbidden"),
        ("kind=chat", server.token("ben", org="acme"), 403, "forbidden"),
        ("kind=chat", server.token("ann", org="acme", account="wallet"), 403, "forbidden"),
        ("session_id=unprepared", token, 422, "unknown_kind"),
        ("kind=chat", None, 401, "unauthenticated"),
    ):
        response = await ask(server, "GET", path(query), bearer)
        assert_problem(response, status, code)
    client = await server.login("ann", org="acme")
    await funded(server, "5")
    assert (await begun(client, "l1", "lesson"))["type"] == "session"
    crowded = await ask(server, "GET", path("kind=lesson"), token)
    assert_problem(crowded, 429, "rate_limited")
    closed = await start_server(rates=server.process.settings.rates, start="prepared")
    assert_problem(await ask(closed, "GET", path("kind=chat"), token), 403, "forbidden")
    # A backend can prepare what it asks about.
    asked = await ask(closed, "GET", path("kind=chat&org=acme"))
    assert asked.status_code == 200, asked.text


async def test_months_allotment_that_a_start_would_bring_counts(
    start_server: StartServer, tmp_path: Path
) -> None:
    rates = tmp_path / "tiers.toml"
    rates.write_text(CARD.replace('allotment = "0"', 'allotment = "8"'))
    server = await start_server(rates=rates)
    client_token = server.token("ann", org="acme")
    estimate = await estimated(server, "kind=talk", client_token)
    assert estimate["credits"] == "8"
    client = await server.login("ann", org="acme")
    assert_same(estimate, await begun(client, "s1", "talk"))


# --- Any terms, any state --------------------------------------------------------------

SECOND = 1_000
prices = st.sampled_from([0, CREDIT // 3, CREDIT, 7_250_000])
some_terms = st.builds(
    lambda price, free, scope, increments, counts, cap: msgspec.structs.replace(
        TERMS, price_micros=price, free_ms=free, free_scope=scope,
        first_increment_ms=increments[0], next_increment_ms=increments[1],
        counts_minutes=counts, session_cap_ms=cap,
    ),
    prices,
    st.sampled_from([0, 20 * SECOND, 90 * SECOND]),
    st.sampled_from(["session", "pair", "day"]),
    st.sampled_from([(SECOND, SECOND), (30 * SECOND, 6 * SECOND), (60 * SECOND, 60 * SECOND)]),
    st.booleans(),
    st.sampled_from([0, 0, 45 * SECOND, 600 * SECOND]),
)  # fmt: skip
some_minutes = st.none() | st.integers(0, 2) | st.integers(3, 30)
ORGS = itertools.count()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The starts that waited for what other sessions hold."""
    waited: list[str] = []
    before = LocalSession._waits_for_holders

    def observed(local: LocalSession) -> bool:
        waited.append(local.key)
        return before(local)

    monkeypatch.setattr(LocalSession, "_waits_for_holders", observed)
    return waited


@given(
    terms=some_terms,
    others=st.lists(st.tuples(some_terms, st.integers(0, 100 * SECOND), st.booleans()), max_size=3),
    balance=st.integers(0, CREDIT) | st.integers(CREDIT, 6 * CREDIT) | st.just(90 * CREDIT),
    months=st.tuples(some_minutes, some_minutes, st.booleans()),
    in_org=st.booleans(),
)
@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
async def test_estimate_is_the_start_that_follows(
    cluster: Cluster, node: Node, waits: list[str], terms: Terms,
    others: list[tuple[Terms, int, bool]], balance: int,
    months: tuple[int | None, int | None, bool], in_org: bool,
) -> None:  # fmt: skip
    org = f"org{next(ORGS)}" if in_org else None
    user = f"user{next(ORGS)}"
    tenant = f"org:{org}" if org else f"user:{user}"
    names: dict[str, Any] = {"user_id": user, "org_id": org, "counterpart_id": "advisor"}
    if org is not None:
        member, all_members, overage = months
        await cluster.records.put_organization(
            tenant, org, timezone="Asia/Tokyo", allow_overage=overage,
            monthly_hours_limit=None if all_members is None else all_members / 60,
        )  # fmt: skip
        hours = None if member is None else member / 60
        await cluster.records.put_member(tenant, user, monthly_hours_limit=hours)
    if balance:
        await cluster.grant(balance, user, org)

    def key_of(of: Terms) -> str | None:
        return free_key(of, user, "advisor", "2026-05-29")

    browsers = []
    for number, (other, ran_ms, stops) in enumerate(others):
        browser = node.browser(f"other-{number}")
        browsers.append(browser)
        shown = await browser.start(f"other-{number}", other, free_key=key_of(other), **names)
        await cluster.advance(ran_ms)
        if stops and shown["type"] == "session" and browser.local_sessions:
            await browser.request(f"other-{number}", Event.STOP)
    # Claims of the others may be due at this very instant: they come first.
    await cluster.settle()
    identity = Identity(
        tenant=tenant, session_id="estimate", account_id=user, kind=terms.kind,
        started_at=node.clock.now(), terms=terms, free_key=key_of(terms), **names,
    )  # fmt: skip
    process: Any = SimpleNamespace(
        registry=node.registry, clock=node.clock, ledger=node.ledger, live=node.live,
        loader=node.loader, node=node.name,
    )  # fmt: skip
    basis: Any = None
    estimate = await _estimate(process, identity, basis)
    assert estimate is not None
    await cluster.settle()
    waits.clear()
    browser = node.browser("starter")
    browsers.append(browser)
    started = await browser.start("starter", terms, free_key=key_of(terms), **names)
    if waits:
        event("the start waited for what others hold")
        assert estimate.can_start
    elif started["type"] == "error":
        event("refused")
        assert (started["code"], started["limit"]) == ("limit_reached", estimate.limit)
        assert (estimate.can_start, estimate.remaining_ms) == (False, 0)
    else:
        event("started")
        assert estimate.can_start
        first = next(one for one in browser.messages if one.get("id") == 1)
        shown = msgspec.to_builtins(estimate)
        for name in ("credits", "credits_per_minute", "free_remaining_ms", "remaining_ms",
                     "limit", "limits", "speed"):  # fmt: skip
            assert shown[name] == first[name], name
    for browser in browsers:
        await browser.close()
    await cluster.advance(60 * SECOND)
