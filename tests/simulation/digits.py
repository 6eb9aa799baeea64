"""Amounts in other digits: requests over HTTP, where amounts are text.

This module does what the HTTP calls do from where their key is begun on. The request is repeated
under the same key when the answers under that key are forgotten, so that only the ledger knows what
was done.
"""

from typing import Any

import orjson

from protocol.wire.errors import ServiceError
from protocol.wire.money import MICROS_PER_CREDIT, format_credits, parse_credits
from server.access.principals import Principal
from server.api import billing, grants, holds, spends
from server.credits.outcomes import Held, Short, Spent
from server.http import idempotency
from server.http.problems import Problem
from storage.postgres.records import UnavailableError
from storage.redis.spending import AccountName
from tests.simulation.processes import ServerHost

FORMS = 3
BACKEND = Principal(kind="key")


class NamedRequest(idempotency.IdempotentRequest, frozen=True):
    """An idempotent request whose ledger entry has the name of its key."""

    def entry_id(self, prefix: str) -> str:
        """The key."""
        return self.key


def digits(micros: int, form: int) -> str:
    """An amount in one of ``FORMS`` forms, counted from 1.

    The forms are the shortest one, one with an extra zero, and one with all decimals.
    """
    if form == 1:
        return format_credits(micros)
    whole, fraction = divmod(micros, MICROS_PER_CREDIT)
    decimals = f"{fraction:06d}"
    if form == 2:
        decimals = (decimals.rstrip("0") + "0")[:6]
    return f"{whole}.{decimals}"


async def ask(
    node: ServerHost, kind: str, account: AccountName, key: str, micros: int, ttl_ms: int, form: int
) -> Any:
    """Makes a ``pay``, ``spend`` or ``hold``, and answers as ``CreditLedger`` does."""
    process, amount = node.process, digits(micros, form)
    idempotent = NamedRequest(account.tenant, kind, key, "", "")
    try:
        if kind == "pay":
            wanted = grants.GrantWanted(amount=amount, reason="simulated")
            await grants._grant(process, idempotent, account, wanted)
            return True
        if kind == "spend":
            charge = billing.Charge(amount=amount)
            made = await spends._spend(process, BACKEND, idempotent, account, charge)
            answer = orjson.loads(made.body)
            return Spent(key, parse_credits(answer["amount"]), None, 0, 0, repeated=False)
        hold = holds.HoldWanted(amount=amount, ttl_ms=ttl_ms)
        answer = orjson.loads((await holds._open(process, BACKEND, idempotent, account, hold)).body)
        micros, until = parse_credits(answer["amount"]), answer["expires_at"]
        return Held(key, answer["state"], micros, until, 0, 0, repeated=False)
    except UnavailableError as error:
        raise ServiceError("the record does not answer") from error
    except Problem as problem:
        if problem.code != "insufficient_credits":
            raise AssertionError(problem.code) from problem
        missing = parse_credits(problem.extensions["missing"])
        return Short(missing, parse_credits(problem.extensions["credits"], signed=True))
