"""Corrections of a member's monthly minutes: new entries, never an edit."""

import re
from datetime import date
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.wire.errors import BadMessageError
from protocol.wire.fields import UserId, describe
from server import limits as server_limits
from server.access.principals import ACTORS, tenant_of
from server.api.billing import Reason
from server.api.organizations import MONTH_PATTERN, OrgId
from server.counters.calendars import calendar
from server.credits.minute_adjustments import ClaimOverError
from server.http.acts import Act
from server.http.idempotency import (
    IdempotentRequest,
    claim_under_way,
    idempotent_of,
    once,
    under_way,
)
from server.http.openapi import IDEMPOTENCY_KEY, Operation, described
from server.http.problems import Problem
from server.http.requests import path_id, principal_of, process_of, raw_body, read_body
from server.http.responses import answer
from server.process import Process

MINUTES_MAX = server_limits.MONTHLY_HOURS_MAX * 60

Minutes = Annotated[
    int,
    Meta(
        ge=-MINUTES_MAX,
        le=MINUTES_MAX,
        description="Minutes to add to those used; a negative number gives back. Not 0.",
        extra_json_schema={"not": {"const": 0}},
    ),
]


class AdjustmentWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for a member's month to be corrected."""

    minutes: Minutes
    reason: Reason
    month: (
        Annotated[
            str,
            Meta(
                description="The month, by its first day; the current month if missing.",
                # For readers of the schema only: the checks below give clearer errors.
                extra_json_schema={"pattern": MONTH_PATTERN},
            ),
        ]
        | None
    ) = None


class AdjustmentMade(msgspec.Struct, frozen=True, kw_only=True):
    """The month is corrected: the member's, and with it the organisation's."""

    entry_id: Annotated[str, describe("The entry; the same at every attempt.")]
    org_id: OrgId
    user_id: UserId
    month: Annotated[str, describe("The month, by its first day.")]
    minutes: Minutes
    reason: Reason
    minutes_used: Annotated[
        int, Meta(ge=0, description="The member's recorded minutes after the adjustment.")
    ]


async def _minutes_before(request: Request) -> object:
    """The member's recorded minutes of the month under way."""
    process, tenant = process_of(request), tenant_of(path_id(request), "")
    user_id = path_id(request, "user")
    found = await process.records.load_member(tenant, user_id, [])
    month = date.fromisoformat(calendar(found.timezone).month(process.clock.now()))
    (used,) = (await process.records.load_member(tenant, user_id, [month])).months
    return {"month": month.isoformat(), "minutes_used": used.member_minutes}


@described(
    Operation(
        tag="organizations",
        roles=ACTORS,
        act=Act(name="adjust", target="member:{id}/{user}", is_keyed=True, before=_minutes_before),
        path={"id": "The organisation.", "user": "The member."},
        parameters=(IDEMPOTENCY_KEY,),
        body=AdjustmentWanted,
        answers={201: (AdjustmentMade,)},
        errors={
            400: ("idempotency_key_required",),
            409: ("idempotency_under_way",),
            422: ("idempotency_mismatch", "minutes_exceeded"),
        },
    )
)
async def adjust(request: Request) -> Response:
    """Corrects the minutes of a member's month, once for each `Idempotency-Key`.

    The correction reaches live sessions at once, in both directions: they continue, or are warned
    and stopped.
    """
    process = process_of(request)
    principal = principal_of(request)
    org_id, user_id = path_id(request), path_id(request, "user")
    tenant = tenant_of(org_id, user_id)
    raw = await raw_body(request)
    wanted = read_body(raw, AdjustmentWanted)
    if wanted.minutes == 0:
        raise BadMessageError("minutes: must not be 0")
    if wanted.month is not None and re.fullmatch(MONTH_PATTERN, wanted.month) is None:
        raise BadMessageError("month: expected the first day of one, such as 2026-11-01")
    idempotent = idempotent_of(request, principal, tenant, "adjustments", raw)
    return await once(
        process.records, idempotent, lambda: _adjust(process, idempotent, org_id, user_id, wanted)
    )


async def _adjust(
    process: Process,
    idempotent: IdempotentRequest,
    org_id: str,
    user_id: str,
    wanted: AdjustmentWanted,
) -> Response:
    entry_id = idempotent.entry_id("adjust")
    found = await process.loader.member(idempotent.tenant, user_id)
    if wanted.month is not None and (
        wanted.month > calendar(found.timezone).month(process.clock.now())
    ):
        raise BadMessageError("month: has not begun")
    try:
        made = await process.ledger.adjust_minutes(
            idempotent.tenant,
            user_id,
            entry_id=entry_id,
            minutes=wanted.minutes,
            reason=wanted.reason,
            month=wanted.month,
            claim=claim_under_way(),
        )
    except ClaimOverError:
        raise under_way() from None
    except BadMessageError as error:
        raise Problem(422, "minutes_exceeded", error.message) from None
    if made.minutes != wanted.minutes or wanted.month not in (None, made.month):
        # Adjustments are kept longer than the answers to idempotency keys.
        raise Problem(422, "idempotency_mismatch", "the key was used for another adjustment")
    month = date.fromisoformat(made.month)
    (used,) = (await process.records.load_member(idempotent.tenant, user_id, [month])).months
    return answer(
        AdjustmentMade(
            entry_id=entry_id,
            org_id=org_id,
            user_id=user_id,
            month=made.month,
            minutes=made.minutes,
            reason=made.reason,
            minutes_used=used.member_minutes,
        ),
        201,
    )


ROUTES = [
    Route("/v1/orgs/{id}/members/{user}/adjustments", adjust, methods=["POST"]),
]
