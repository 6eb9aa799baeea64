"""Request, token and record decide what a session is to be."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from protocol.wire import messages
from protocol.wire.errors import BadMessageError, ErrorCode, PeerError, RefusedError, ServiceError
from server.access.principals import Principal
from server.gateway import session_start
from server.gateway.session_start import check_call_id, identity_of
from server.runtime.rate_card_file import load_rate_card
from tests.server.test_lost_sessions import ROW
from tests.simulation.cluster import Cluster, Node
from tests.simulation.people import RATES

ANN = Principal("user", "ann", None, "wallet", "user:ann")
MEMBER = Principal("user", "ann", "acme", "wallet", "org:acme")


def process_of(node: Node, start: str = "open") -> Any:
    """As much of a process as decides about a start."""
    return SimpleNamespace(
        loader=node.loader,
        records=node.cluster.records,
        clock=node.clock,
        rates=RATES,
        settings=SimpleNamespace(start=start),
    )


def start_of(kind: str = "chat", **fields: Any) -> messages.Start:
    return messages.Start(session_id="s1", kind=kind, **fields)


async def test_session_is_the_tokens_users_with_the_kinds_terms(
    cluster: Cluster, node: Node
) -> None:
    request = start_of("second", metadata={"topic": "stars"})
    identity, basis = await identity_of(process_of(node), ANN, request)
    assert (identity.tenant, identity.user_id, identity.account_id) == ("user:ann", "ann", "wallet")
    assert (identity.kind, identity.terms) == ("second", RATES.kinds["second"])
    assert (identity.metadata, identity.started_at) == ({"topic": "stars"}, node.clock.now())
    assert not basis.preparation


async def test_free_time_with_a_counterpart_needs_one_that_the_issuer_knows(
    cluster: Cluster, node: Node
) -> None:
    knows = dataclasses.replace(ANN, counterparts=frozenset({"advisor"}))
    process, request = process_of(node), start_of("pair", counterpart_id="advisor")
    known, _ = await identity_of(process, knows, request)
    assert known.terms.free_ms == RATES.kinds["pair"].free_ms
    invented, _ = await identity_of(process, ANN, request)
    assert invented.terms == RATES.kinds["pair"].with_unknown_counterpart()
    with pytest.raises(PeerError):
        await identity_of(process, knows, start_of("pair", counterpart_id="somebody"))


async def test_free_time_of_a_day_counts_by_the_organisations_calendar(
    cluster: Cluster, node: Node
) -> None:
    process, request = process_of(node), start_of("day")
    in_utc, _ = await identity_of(process, MEMBER, request)
    # It is 20:26 in London, and the next day in Auckland.
    await cluster.records.put_organization("org:acme", "acme", timezone="Pacific/Auckland")
    elsewhere, _ = await identity_of(process, MEMBER, request)
    assert in_utc.free_key is not None
    assert "2026-05-28" in in_utc.free_key
    assert elsewhere.free_key == in_utc.free_key.replace("2026-05-28", "2026-05-29")


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"user_id": "ben"}, PeerError), ({"state": "ended"}, RefusedError), ({}, ServiceError)],
)
async def test_recorded_session_is_not_started_again(
    cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any], error: type[Exception],
) -> None:  # fmt: skip
    async def basis_of_start(*_: object) -> tuple[None, Any]:
        return None, msgspec.structs.replace(ROW, **changes)

    monkeypatch.setattr(session_start, "basis_of_start", basis_of_start)
    with pytest.raises(error):
        await identity_of(process_of(node), ANN, start_of())


async def test_unknown_kinds_and_unprepared_sessions_are_refused(
    cluster: Cluster, node: Node
) -> None:
    with pytest.raises((BadMessageError, PeerError)):
        await identity_of(process_of(node), ANN, start_of("nothing"))
    with pytest.raises(PeerError) as refused:
        await identity_of(process_of(node, "prepared"), ANN, start_of())
    assert refused.value.code is ErrorCode.FORBIDDEN


@pytest.mark.parametrize(
    ("session_id", "kind", "is_allowed"),
    [
        ("call:stream:run:ann", "call", True),
        ("call:stream:run:~SZFeDX1LQC4wF9AQvBwOg8", "call", True),
        ("call:stream:run:~kzXh0wcUq0kV5bXQF7sXTw", "call", False),  # of another long id
        ("call:stream:~:ben", "call", False),
        ("call:stream:run:ben", "call", False),
        ("call:stream:run:ann", "chat", False),  # a cheaper kind
        ("call:42", "chat", True),  # an application's own
        ("chat-1", "chat", True),
    ],
)
def test_a_calls_id_is_its_users_and_of_a_kind_with_an_outside_clock(
    session_id: str, kind: str, is_allowed: bool
) -> None:
    if is_allowed:
        check_call_id(session_id, "ann", load_rate_card().terms(kind))
        return
    with pytest.raises(PeerError) as refused:
        check_call_id(session_id, "ann", load_rate_card().terms(kind))
    assert refused.value.code is ErrorCode.FORBIDDEN
