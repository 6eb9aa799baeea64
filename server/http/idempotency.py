"""Requests that change money, done once however often they are sent.

PROTOCOL section 2: "Every POST that changes money takes `Idempotency-Key`: the same key
and body give the stored answer again, the same key with another body 422, one still
under way 409."

How it works
------------
A key is begun in Postgres, the work is done, and the answer is kept under the key. What
the work writes has an id that is made of the key as well (:meth:`IdempotentRequest.entry_id`). So a
process may die between any two of these: whoever asks again is told ``under way`` for a
minute, then the work is done anew, finds its own entry, and comes to the same answer.

An answer that the work decided is final and kept, be it a refusal: an id that failed on
insufficient funds stays failed (PITFALLS). A failure of ours is no answer, so it frees
the key. What is wrong with the request itself is refused before its key is begun.

Keys belong to whoever uses them: all API keys of the backends together, for a key may be
rotated between two attempts, and each user for themselves.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response

from protocol import limits
from protocol.wire.errors import BadMessageError, ProtocolError, ServiceError
from protocol.wire.money import format_credits, parse_credits
from server import limits as server_limits
from server.access.principals import Principal
from server.http.problems import Problem, problem_of
from server.http.responses import json_response
from server.runtime.clock import Clock
from storage.postgres.records import Records, RejectedError, UnavailableError
from storage.rows.idempotency import Mismatch, StoredAnswer, UnderWay

KEY_HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotent-Replayed"

UNDECIDED = frozenset({"rate_limited", "unknown_operation", "unknown_package"})
"""Refusals that say nothing of the request itself: it was not its turn, or the rate card, which may
be mended, does not know what is asked for."""

CREDITS_FIELDS = frozenset({"amount", "credits", "credits_per_minute"})
"""Fields of bodies that are credits, wherever they occur."""

log = structlog.get_logger()

Work = Callable[[], Awaitable[Response]]
"""Does what was asked for and answers it, or raises what is to be answered instead."""


class IdempotentRequest(msgspec.Struct, frozen=True):
    """Something that is to be done once, by the key that its request carries."""

    tenant: str
    scope: str
    """What is done, and for whom: the space in which the key is unique."""
    key: str
    fingerprint: str
    """Of the whole request: another request under the same key is a mistake. The same amount
    in other digits, and the same fields in another order, are the same request."""
    former: str
    """The same, as versions made it that took amounts in other digits for another request."""

    def entry_id(self, prefix: str) -> str:
        """The id of what the work writes: the same at every attempt, and no other's."""
        return f"{prefix}:{_digest(self.tenant, self.scope, self.key)[:32]}"


def idempotent_of(
    request: Request, principal: Principal, tenant: str, operation: str, raw: bytes
) -> IdempotentRequest:
    """What a request asks for, to be done once; ``raw`` is its body, found to be a JSON object.

    Raises ``idempotency_key_required``, and ``bad_message`` for a key that is none.
    """
    keys = request.headers.getlist(KEY_HEADER)
    if not keys or keys == [""]:
        raise Problem(
            400,
            "idempotency_key_required",
            f"{KEY_HEADER}: missing; send a new one with each intent, and the same one again "
            "with each attempt",
        )
    if len(keys) > 1 or not _is_key(keys[0]):
        raise BadMessageError(
            f"{KEY_HEADER}: expected 1-{server_limits.IDEMPOTENCY_KEY_CHARACTERS_MAX} printable "
            "characters of ASCII"
        )
    body = orjson.loads(raw or b"{}")
    owner = "key" if principal.is_key else f"user:{principal.user_id}"
    where = (request.method, request.url.path, tenant)
    return IdempotentRequest(
        tenant=tenant,
        scope=f"{operation}/{owner}",
        key=keys[0],
        fingerprint=_digest(*where, _sorted(_canonical(body))),
        former=_digest(*where, _sorted(body)),
    )


async def once(records: Records, idempotent: IdempotentRequest, work: Work) -> Response:
    """The answer to an idempotent request: of ``work``, or of the attempt that did it before.

    Raises ``idempotency_mismatch``, ``idempotency_under_way``, and what ``work`` raises
    that is worth another attempt; what it refuses for good is an answer like any other.
    """
    arguments = (idempotent.tenant, idempotent.scope, idempotent.key)
    known = await records.begin_idempotent(*arguments, idempotent.fingerprint)
    if isinstance(known, Mismatch) and idempotent.former != idempotent.fingerprint:
        # The first attempt may have been made before an upgrade.
        known = await records.begin_idempotent(*arguments, idempotent.former)
    match known:
        case StoredAnswer(status, body):
            return json_response(body, status, {REPLAYED_HEADER: "true"})
        case Mismatch():
            raise Problem(
                422, "idempotency_mismatch", f"{KEY_HEADER}: was used for another request"
            )
        case UnderWay():
            raise _under_way()
    try:
        response = await _answer(work)
        body = bytes(response.body)
        kept = await records.finish_idempotent(*arguments, known, response.status_code, body)
    except Exception:
        # Should this fail too, the key is taken over when it has been under way for long.
        with contextlib.suppress(UnavailableError):
            await records.release_idempotent(*arguments, known)
        raise
    if not kept:
        # Somebody took over, and theirs is the answer: what they came to may be another.
        raise _under_way()
    return response


def _under_way() -> Problem:
    return Problem(
        409,
        "idempotency_under_way",
        "a request with this key is under way; ask again for its answer",
        retry_after_s=server_limits.IDEMPOTENT_RETRY_AFTER_S,
    )


async def _answer(work: Work) -> Response:
    """What the work comes to, if that is final; raises what is not."""
    try:
        async with asyncio.timeout(server_limits.IDEMPOTENT_WORK_MS / 1000):
            return await work()
    except TimeoutError:
        raise ServiceError("this took too long; ask again with the same key") from None
    except (Problem, ProtocolError, RejectedError) as error:
        problem = problem_of(error)
        if problem.status >= 500 or problem.code in UNDECIDED:
            raise
        return problem.response()


async def forget_old_keys(records: Records, clock: Clock) -> None:
    """Forgets the keys of yesterday, for as long as the process lives.

    What they did is not forgotten: the entries have their ids for ever.
    """
    while True:
        try:
            forgotten = server_limits.FORGOTTEN_KEYS_PER_BATCH
            while forgotten == server_limits.FORGOTTEN_KEYS_PER_BATCH:
                before_at = clock.now() - server_limits.IDEMPOTENCY_KEPT_MS
                forgotten = await records.prune_idempotent(
                    before_at, server_limits.FORGOTTEN_KEYS_PER_BATCH
                )
        except UnavailableError as error:
            log.warning("keys_not_forgotten", error=str(error))
        await asyncio.sleep(server_limits.IDEMPOTENCY_FORGET_INTERVAL_S)


def _is_key(text: str) -> bool:
    return (
        0 < len(text) <= server_limits.IDEMPOTENCY_KEY_CHARACTERS_MAX
        and text.isascii()
        and text.isprintable()
    )


def _canonical(body: dict[str, Any]) -> dict[str, Any]:
    """The body with its numbers in the shortest form: "1.50" credits ask for the same as
    "1.5", and 60.0 is the integer that it is read as (``http.read_body``)."""
    canonical = {name: int(part) if _is_integer(part) else part for name, part in body.items()}
    for name in CREDITS_FIELDS & body.keys():
        with contextlib.suppress(BadMessageError):
            canonical[name] = format_credits(parse_credits(body[name], signed=True))
    return canonical


def _is_integer(part: object) -> bool:
    # Above that a number without a fraction is no integer for certain.
    return isinstance(part, float) and part.is_integer() and abs(part) <= limits.SAFE_INTEGER_MAX


def _sorted(body: dict[str, Any]) -> str:
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS).decode()


def _digest(*parts: str) -> str:
    """SHA-256 over the parts, none of which contains the newline that joins them: only
    the last may have any character at all, and there a newline is escaped by JSON."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
