"""Requests that change money: done once, however often they are sent.

PROTOCOL section 2: "Every POST that changes money takes `Idempotency-Key`: the same key and body
give the stored answer again, the same key with another body 422, one still under way 409."

How it works
------------

A key is begun in Postgres, the work is done, and the answer is kept under the key. The work's entry
has an id that is derived from the key as well (:meth:`IdempotentRequest.entry_id`). So a process
may die between any two of these steps. A repeated request is then answered ``under way`` for a
minute; after that the work is done again, finds its own entry, and gives the same answer.

An answer that the work decided is final and kept, even a refusal: a key that failed on insufficient
funds stays failed (PITFALLS). A failure of ours is no answer, so it frees the key. A malformed
request is refused before its key is begun.

Each owner has its own keys. All API keys of the backends together are one owner, because an API key
may be rotated between two attempts; each user is an owner.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import msgspec
import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response

from protocol import limits
from protocol.wire.codec import read_json
from protocol.wire.errors import BadMessageError, ProtocolError, ServiceError
from protocol.wire.money import format_credits, parse_credits
from server import limits as server_limits
from server.access.principals import Principal
from server.http.problems import Problem, problem_of
from server.http.responses import json_response
from server.runtime.clock import Clock
from storage.postgres.records import Records, RejectedError, UnavailableError
from storage.redis.timed_scripts import work_until
from storage.rows.idempotency import KeyClaim, Mismatch, StoredAnswer, UnderWay

KEY_HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotent-Replayed"

UNDECIDED = frozenset({"rate_limited", "unknown_operation", "unknown_package"})
"""Refusals that decide nothing about the request itself.

The sender was over its rate, or the rate card, which may be corrected, lacks the name.
"""

CREDITS_FIELDS = frozenset({"amount", "credits", "credits_per_minute"})
"""Fields of bodies that are credits, in all requests."""

log = structlog.get_logger()

_CLAIM: ContextVar[KeyClaim | None] = ContextVar("claim", default=None)
"""The claim of the request whose work the task does."""
Work = Callable[[], Awaitable[Response]]
"""Does the request's work and returns the answer, or raises the error to answer."""


class IdempotentRequest(msgspec.Struct, frozen=True):
    """A request that must be done once, with its key."""

    tenant: str
    scope: str
    """The operation and the owner of the key: the space in which the key is unique."""
    key: str
    fingerprint: str
    """A digest of the whole request: another request under the same key is a mistake. The same
    amount in other digits, and the same fields in another order, are the same request."""
    former: str
    """The digest of former versions, which took an amount in other digits for another request."""

    def entry_id(self, prefix: str) -> str:
        """The unique id of the work's entry, the same at every attempt."""
        return f"{prefix}:{_digest(self.tenant, self.scope, self.key)[:32]}"


def idempotent_of(
    request: Request, principal: Principal, tenant: str, operation: str, raw: bytes
) -> IdempotentRequest:
    """Reads an idempotent request.

    ``raw`` is its body, known to be a JSON object. Raises ``idempotency_key_required``, and
    ``bad_message`` for a malformed key.
    """
    keys = request.headers.getlist(KEY_HEADER)
    if not keys or keys == [""]:
        raise Problem(
            400,
            "idempotency_key_required",
            f"{KEY_HEADER}: missing; send a new key for each intent, and the same key for each "
            "attempt",
        )
    if len(keys) > 1 or not _is_key(keys[0]):
        raise BadMessageError(
            f"{KEY_HEADER}: expected 1-{server_limits.IDEMPOTENCY_KEY_CHARACTERS_MAX} printable "
            "characters of ASCII"
        )
    body = orjson.loads(raw or b"{}")
    owner = "key" if principal.is_key else f"{principal.kind}:{principal.user_id}"
    where = (request.method, request.url.path, tenant)
    return IdempotentRequest(
        tenant=tenant,
        scope=f"{operation}/{owner}",
        key=keys[0],
        fingerprint=_digest(*where, _sorted(_canonical(body))),
        former=_digest(*where, _sorted(body)),
    )


async def once(records: Records, idempotent: IdempotentRequest, work: Work) -> Response:
    """The answer of ``work``, or of an earlier attempt.

    Raises ``idempotency_mismatch``, ``idempotency_under_way``, and those errors of ``work`` that
    are worth another attempt. A final refusal by ``work`` is an answer like any other.
    """
    # Before the key is begun: it is taken over later than this attempt can do anything.
    ends_at = asyncio.get_running_loop().time() + server_limits.IDEMPOTENT_WORK_MS / 1000
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
            raise under_way()
    token = _CLAIM.set(KeyClaim(idempotent.scope, idempotent.key, known.began_at))
    try:
        with work_until(ends_at):
            response = await _answer(work, ends_at)
        body = bytes(response.body)
        kept = await records.finish_idempotent(*arguments, known, response.status_code, body)
    except Exception:
        # If this fails too, another attempt takes the key over after a minute.
        with contextlib.suppress(UnavailableError):
            await records.release_idempotent(*arguments, known)
        raise
    finally:
        _CLAIM.reset(token)
    if not kept:
        # Another attempt took the key over, and its answer counts, because the two may differ.
        raise under_way()
    return response


def claim_under_way() -> KeyClaim | None:
    """This task's claim on its request's key; None: no key."""
    return _CLAIM.get()


def under_way() -> Problem:
    """The answer while another attempt has the key."""
    return Problem(
        409,
        "idempotency_under_way",
        "a request with this key is under way; ask again for its answer",
        retry_after_s=server_limits.IDEMPOTENT_RETRY_AFTER_S,
    )


async def _answer(work: Work, ends_at: float) -> Response:
    """The answer of the work, if final; raises other errors."""
    try:
        async with asyncio.timeout_at(ends_at):
            return await work()
    except TimeoutError:
        raise ServiceError("this took too long; ask again with the same key") from None
    except (Problem, ProtocolError, RejectedError) as error:
        problem = problem_of(error)
        if problem.status >= 500 or problem.code in UNDECIDED:
            raise
        return problem.response()


async def forget_old_keys(records: Records, clock: Clock) -> None:
    """Forgets keys after a day, again and again until cancelled.

    The entries that the keys made stay: their ids prevent repetition permanently.
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
    """The body with its numbers in the shortest form.

    "1.50" credits are the same request as "1.5", and 60.0 is the integer as which
    ``requests.read_body`` reads it.
    """
    canonical = {name: int(part) if _is_integer(part) else part for name, part in body.items()}
    for name in CREDITS_FIELDS & body.keys():
        with contextlib.suppress(BadMessageError):
            canonical[name] = format_credits(parse_credits(body[name], signed=True))
    return canonical


def canonical_text(raw: bytes) -> bytes:
    """A body as a fingerprint has it; a malformed one stays.

    Another order of fields, and the same amount in other digits, give the same text.
    """
    try:
        body = read_json(raw or b"{}", server_limits.BODY_BYTES_MAX)
    except BadMessageError:
        return raw
    return _sorted(_canonical(body)).encode() if isinstance(body, dict) else raw


def _is_integer(part: object) -> bool:
    # Above this a number without a fraction may not be the integer that was sent.
    return isinstance(part, float) and part.is_integer() and abs(part) <= limits.SAFE_INTEGER_MAX


def _sorted(body: dict[str, Any]) -> str:
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS).decode()


def _digest(*parts: str) -> str:
    """SHA-256 over the parts, joined by newlines.

    No part contains a newline: only the last part may have any character, and JSON escapes newlines
    there.
    """
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
