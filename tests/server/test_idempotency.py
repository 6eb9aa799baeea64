"""Work that is done once: keys, their scope, and stored answers."""

import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from protocol.wire.errors import (
    BadMessageError,
    ErrorCode,
    PeerError,
    ProtocolError,
    RefusedError,
    ServiceError,
)
from server import limits as server_limits
from server.access.principals import Principal
from server.http.idempotency import (
    IdempotentRequest,
    canonical_text,
    forget_old_keys,
    idempotent_of,
    once,
)
from server.http.problems import Problem
from server.http.responses import answer, json_response
from server.runtime.clock import ClusterClock
from storage import limits as storage_limits
from storage.postgres.records import Records, UnavailableError
from storage.redis.live import LiveError
from tests.fixtures.database import Connection

BACKEND = Principal(kind="key")


def asked(*keys: str, path: str = "/v1/accounts/ann/grants", method: str = "POST") -> Request:
    """A request with these values of the header."""
    return Request(
        {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "server": ("localhost", 80),
            "headers": [(b"idempotency-key", key.encode()) for key in keys],
        }
    )


def idempotent(key: str = "k1", raw: bytes = b"{}", **parts: Any) -> IdempotentRequest:
    request = asked(key, **{name: parts.pop(name) for name in ("path", "method") if name in parts})
    values = {"principal": BACKEND, "tenant": "org:acme", "operation": "grants", **parts}
    return idempotent_of(request, values["principal"], values["tenant"], values["operation"], raw)


class Done:
    """Work that counts its runs, and answers the count."""

    def __init__(self, *failures: Exception) -> None:
        self.count = 0
        self.failures = list(failures)

    async def __call__(self) -> Response:
        self.count += 1
        if self.failures:
            raise self.failures.pop(0)
        return answer({"count": self.count}, 201)


# --- Idempotent requests ----------------------------------------------------------------


def test_a_request_is_named_by_key_caller_and_call() -> None:
    ids = {
        idempotent().entry_id("grant"),
        idempotent("k2").entry_id("grant"),
        idempotent(operation="spends").entry_id("grant"),
        idempotent(principal=Principal(kind="user", user_id="ann")).entry_id("grant"),
        idempotent(principal=Principal(kind="user", user_id="ben")).entry_id("grant"),
    }
    assert len(ids) == 5
    assert idempotent().entry_id("grant") == idempotent(raw=b'{"a":1}').entry_id("grant")
    assert all(len(entry_id) == len("grant:") + 32 for entry_id in ids)


def test_an_idempotent_requests_fingerprint_is_of_the_whole_request() -> None:
    fingerprints = {
        idempotent().fingerprint,
        idempotent(raw=b'{"a":1}').fingerprint,
        idempotent(raw=b'{"a":"1"}').fingerprint,
        idempotent(path="/v1/accounts/ben/grants").fingerprint,
        idempotent(method="PUT").fingerprint,
        idempotent(tenant="org:other").fingerprint,
    }
    assert len(fingerprints) == 6
    one, other = (
        idempotent(raw=b'{"a":1,"b":{"c":2,"d":3}}'),
        idempotent(raw=b'{ "b":{"d":3,"c":2},"a":1 }'),
    )
    assert one.fingerprint == other.fingerprint
    assert idempotent(raw=b"").fingerprint == idempotent(raw=b"{}").fingerprint


@pytest.mark.parametrize("name", ["amount", "credits"])
def test_an_amount_in_other_digits_is_the_same_request(name: str) -> None:
    def fingerprint(amount: str) -> str:
        return idempotent(raw=f'{{"{name}": "{amount}", "reason": "x"}}'.encode()).fingerprint

    assert fingerprint("1.5") == fingerprint("1.50") == fingerprint("1.500000")
    assert len({fingerprint(amount) for amount in ("1.5", "1.05", "15", "-1.5", "01.5")}) == 5
    assert idempotent(raw=b'{"metadata":{"amount":"1.5"}}') != idempotent(
        raw=b'{"metadata":{"amount":"1.50"}}'
    )


def test_an_integer_in_other_digits_is_the_same_request() -> None:
    def fingerprint(number: str) -> str:
        return idempotent(raw=f'{{"minutes": {number}}}'.encode()).fingerprint

    assert fingerprint("10") == fingerprint("10.0") == fingerprint("1e1") == fingerprint("100E-1")
    assert len({fingerprint(number) for number in ("10", "-10", "10.5", "1e300", '"10"')}) == 5


@pytest.mark.parametrize("keys", [(), ("",)])
def test_a_request_without_a_key_hears_what_to_send(keys: tuple[str, ...]) -> None:
    with pytest.raises(Problem) as raised:
        idempotent_of(asked(*keys), BACKEND, "org:acme", "grants", b"{}")
    assert (raised.value.status, raised.value.code) == (400, "idempotency_key_required")


@pytest.mark.parametrize("keys", [("a", "b"), ("x" * 256,), ("a\nb",), ("kä",), ("", "a")])
def test_a_key_that_is_none_is_refused(keys: tuple[str, ...]) -> None:
    with pytest.raises(BadMessageError, match="Idempotency-Key"):
        idempotent_of(asked(*keys), BACKEND, "org:acme", "grants", b"{}")


def test_the_longest_key_is_one() -> None:
    assert idempotent("x" * server_limits.IDEMPOTENCY_KEY_CHARACTERS_MAX).key


# --- Once --------------------------------------------------------------------------


async def test_work_is_done_once_and_answered_again(records: Records) -> None:
    work = Done()
    first, again = await once(records, idempotent(), work), await once(records, idempotent(), work)
    assert work.count == 1
    assert (first.status_code, first.body) == (201, b'{"count":1}')
    assert (again.status_code, again.body) == (201, b'{"count":1}')
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"


async def test_another_request_under_the_key_is_a_mistake(records: Records) -> None:
    work = Done()
    await once(records, idempotent(), work)
    with pytest.raises(Problem) as raised:
        await once(records, idempotent(raw=b'{"a":1}'), work)
    assert (raised.value.status, raised.value.code) == (422, "idempotency_mismatch")
    assert work.count == 1


async def test_a_key_of_before_an_upgrade_keeps_its_answer(
    records: Records, connection: Connection
) -> None:
    """The previous version treated other digits of an amount as another request."""
    work, asked_for = Done(), idempotent(raw=b'{"amount":"1.50"}')
    first = await once(records, asked_for, work)
    await connection.execute("UPDATE idempotency_keys SET fingerprint = $1", asked_for.former)
    assert (await once(records, asked_for, work)).body == first.body
    with pytest.raises(Problem) as raised:
        await once(records, idempotent(raw=b'{"amount":"1.51"}'), work)
    assert raised.value.code == "idempotency_mismatch"
    # Unfinished work is done by the request that takes it over.
    await connection.execute(
        "UPDATE idempotency_keys SET status = NULL, response = NULL, "
        "created_at = created_at - interval '1 hour'"
    )
    assert (await once(records, asked_for, work)).status_code == 201
    assert work.count == 2


async def test_the_same_key_of_others_is_another_one(records: Records) -> None:
    work = Done()
    for parts in (
        {},
        {"tenant": "org:other"},
        {"operation": "spends"},
        {"principal": Principal(kind="user", user_id="ann")},
    ):
        await once(records, idempotent(**parts), work)
    assert work.count == 4


async def test_who_asks_meanwhile_hears_that_it_is_under_way(records: Records) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    async def slow() -> Response:
        begun.set()
        await finish.wait()
        return json_response(b"{}", 201)

    first = asyncio.create_task(once(records, idempotent(), slow))
    await begun.wait()
    with pytest.raises(Problem) as raised:
        await once(records, idempotent(), slow)
    assert (raised.value.status, raised.value.code) == (409, "idempotency_under_way")
    assert raised.value.retry_after_s == 1
    # Another request under the key is a mistake even then.
    with pytest.raises(Problem) as raised:
        await once(records, idempotent(raw=b'{"a":1}'), slow)
    assert raised.value.code == "idempotency_mismatch"
    finish.set()
    assert (await first).status_code == 201
    assert (await once(records, idempotent(), slow)).headers["idempotent-replayed"] == "true"


async def take_over(records: Records, connection: Connection, work: Any) -> Response:
    """Makes another attempt 61 s after the first, which counts as dead."""
    await connection.execute(
        "UPDATE idempotency_keys SET created_at = created_at - interval '61 seconds'"
    )
    return await once(records, idempotent(), work)


async def test_the_answer_is_that_of_who_took_over(
    records: Records, connection: Connection
) -> None:
    """The stored answer is that of the attempt that took over.

    The first attempt was refused and answers late; the second one was charged.
    """

    async def slow() -> Response:
        assert (await take_over(records, connection, Done())).status_code == 201
        raise Problem(402, "insufficient_credits", "there was too little")

    with pytest.raises(Problem) as raised:
        await once(records, idempotent(), slow)
    assert (raised.value.status, raised.value.code) == (409, "idempotency_under_way")
    again = await once(records, idempotent(), Done())
    assert (again.status_code, again.body) == (201, b'{"count":1}')


@pytest.mark.parametrize("fails", [True, False])
async def test_who_was_overtaken_leaves_the_key_alone(
    records: Records, connection: Connection, fails: bool
) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    async def second() -> Response:
        begun.set()
        await finish.wait()
        raise Problem(402, "insufficient_credits", "there is too little")

    async def first() -> Response:
        first.other = asyncio.create_task(take_over(records, connection, second))  # type: ignore[attr-defined]
        await begun.wait()
        if fails:
            raise ServiceError("a part does not answer")
        return json_response(b"{}", 201)

    with pytest.raises((Problem, ProtocolError)):
        await once(records, idempotent(), first)
    with pytest.raises(Problem, match="under way"):
        await once(records, idempotent(), Done())
    finish.set()
    assert (await first.other).status_code == 402  # type: ignore[attr-defined]
    assert (await once(records, idempotent(), Done())).status_code == 402


async def test_work_ends_before_it_is_taken_over(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work ends before another attempt takes it over.

    Such a late attempt must not charge under a key that has been refused meanwhile.
    """
    assert server_limits.IDEMPOTENT_WORK_MS < storage_limits.IDEMPOTENT_TAKEOVER_MS
    monkeypatch.setattr(server_limits, "IDEMPOTENT_WORK_MS", 1)

    async def stuck() -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(ServiceError, match="same key"):
        await once(records, idempotent(), stuck)
    assert (await once(records, idempotent(), Done())).status_code == 201


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (Problem(402, "insufficient_credits", "there is too little"), 402, "insufficient_credits"),
        (RefusedError(ErrorCode.LIMIT_REACHED, "nothing is left", limit="credits"), 402, "limit"),
        (BadMessageError("amount: too small"), 400, "bad_message"),
        (PeerError(ErrorCode.FORBIDDEN, "not for this token"), 403, "forbidden"),
    ],
)
async def test_what_the_work_refuses_is_an_answer(
    records: Records, refusal: Exception, status: int, code: str
) -> None:
    work = Done(refusal)
    first, again = await once(records, idempotent(), work), await once(records, idempotent(), work)
    assert work.count == 1
    assert first.status_code == again.status_code == status
    assert code.encode() in bytes(first.body)
    assert first.body == again.body
    assert again.media_type == "application/problem+json"


@pytest.mark.parametrize(
    "failure",
    [
        ServiceError("a part does not answer"),
        LiveError("the store is away"),
        UnavailableError("the database is away"),
        Problem(503, "unavailable", "not now"),
        PeerError(ErrorCode.RATE_LIMITED, "too many"),
        ZeroDivisionError("a bug"),
    ],
)
async def test_a_failure_frees_the_key(records: Records, failure: Exception) -> None:
    work = Done(failure)
    with pytest.raises(type(failure)):
        await once(records, idempotent(), work)
    assert (await once(records, idempotent(), work)).status_code == 201
    assert work.count == 2


async def test_a_failure_to_free_the_key_hides_nothing(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise UnavailableError("the database is away")

    monkeypatch.setattr(records, "release_idempotent", away)
    with pytest.raises(ProtocolError, match="a part does not answer"):
        await once(records, idempotent(), Done(ServiceError("a part does not answer")))


# --- Old keys ------------------------------------------------------------------------


async def test_old_keys_are_forgotten_and_young_ones_kept(
    records: Records, connection: Connection
) -> None:
    for key in ("old", "young"):
        await once(records, idempotent(key), Done())
    await connection.execute(
        "UPDATE idempotency_keys SET created_at = now() - interval '25 hours' WHERE key = 'old'"
    )
    forgetting = asyncio.create_task(forget_old_keys(records, ClusterClock()))
    while await connection.fetchval("SELECT count(*) FROM idempotency_keys") > 1:
        assert not forgetting.done()
    forgetting.cancel()
    assert await connection.fetchval("SELECT key FROM idempotency_keys") == "young"
    work = Done()
    await once(records, idempotent("old"), work)
    await once(records, idempotent("young"), work)
    assert work.count == 1


async def test_keys_are_forgotten_in_batches_and_again_after_an_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked_for: list[int] = []
    waited: list[float] = []

    class Pruned:
        async def prune_idempotent(self, _: int, limit: int) -> int:
            asked_for.append(limit)
            if len(asked_for) == 1:
                raise UnavailableError("the database is away")
            return server_limits.FORGOTTEN_KEYS_PER_BATCH if len(asked_for) == 2 else 5

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            raise asyncio.CancelledError

    monkeypatch.setattr("server.http.idempotency.asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await forget_old_keys(Pruned(), ClusterClock())  # type: ignore[arg-type]
    # Away, then a full batch and a last one without a wait between them.
    assert asked_for == [server_limits.FORGOTTEN_KEYS_PER_BATCH] * 3
    assert len(waited) == 2


def test_a_body_that_is_written_in_another_way_is_the_same_text() -> None:
    same = canonical_text(b'{"amount":"1.5","reason":"more"}')
    assert canonical_text(b'{ "reason": "more", "amount": "1.50" }') == same
    assert canonical_text(b'{"amount":"1.6","reason":"more"}') != same
    for malformed in (
        b"",
        b"x",
        b"[1]",
        b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"a":1,"a":2}',
    ):
        canonical_text(malformed)
