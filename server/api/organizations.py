"""Organisations and their members: their limits and use of a month."""

import datetime
import functools
import re
import zoneinfo
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.rate_card import RateCard
from protocol.wire.errors import BadMessageError
from protocol.wire.fields import UserId, describe, describe_id
from server import limits as server_limits
from server.access.principals import ACTORS, READERS, Role, tenant_of
from server.api.usage import usage_of
from server.counters.calendars import calendar
from server.counters.plans import apply_member, apply_organization
from server.http.acts import Act
from server.http.openapi import Operation, described, query_parameter
from server.http.problems import Problem
from server.http.requests import path_id, principal_of, process_of, raw_body, read_body
from server.http.responses import answer
from server.process import Process
from storage.postgres.records import RejectedError
from storage.rows.months import MemberRecord, MemberRow, OrganizationRow

MONTH_PATTERN = r"^2[0-9]{3}-(0[1-9]|1[0-2])-01$"

OrgId = Annotated[str, describe_id("The organisation.")]
Timezone = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        description="An IANA time zone, in which months begin: `Europe/Berlin`.",
    ),
]
Tier = Annotated[str, describe_id("A tier of the rate card.")]
AllowOverage = Annotated[
    bool, describe("Whether members may go on over the organisation's limit, though not their own.")
]
HoursLimit = Annotated[float | None, describe("Hours a calendar month; null: no limit.")]
MinutesLimit = Annotated[
    int | None,
    describe("The same in minutes, to the nearest one, as it is enforced; null: no limit."),
]
NewHoursLimit = (
    Annotated[
        float,
        Meta(
            ge=0, le=server_limits.MONTHLY_HOURS_MAX, description="Hours a month; null: no limit."
        ),
    ]
    | None
    | UnsetType
)


class OrganizationChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change of an organisation; a missing field stays as it is."""

    monthly_hours_limit: NewHoursLimit = UNSET
    timezone: Timezone | UnsetType = UNSET
    tier: Tier | UnsetType = UNSET
    allow_overage: AllowOverage | UnsetType = UNSET


MonthName = Annotated[str, describe("The month, by its first day: `2026-11-01`.")]
WrittenMinutes = Annotated[int, Meta(ge=0, description="Recorded minutes of that month.")]
OverageMinutes = Annotated[
    int,
    Meta(
        ge=0,
        description="Of these, the minutes beyond the organisation's limit, as it was when they "
        "were written down and while overage was allowed: to be billed apart.",
    ),
]


class OrganizationAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An organisation's plan, and its members' joint use of a month."""

    org_id: OrgId
    monthly_hours_limit: HoursLimit
    monthly_minutes_limit: MinutesLimit
    timezone: Timezone
    tier: Tier
    allow_overage: AllowOverage
    month: MonthName
    minutes_used: WrittenMinutes
    overage_minutes: OverageMinutes


class MemberChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change of a member; a missing field stays as it is."""

    monthly_hours_limit: NewHoursLimit = UNSET


class MemberAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A member's own limit, beside the organisation's; the more restrictive one applies."""

    org_id: OrgId
    user_id: UserId
    monthly_hours_limit: HoursLimit
    monthly_minutes_limit: MinutesLimit
    month: MonthName
    minutes_used: WrittenMinutes
    overage_minutes: OverageMinutes


MONTH = query_parameter(
    "month",
    "The month whose minutes are wanted, by its first day; left out, the one "
    "under way where the organisation is.",
    {"type": "string", "pattern": MONTH_PATTERN},
)
CHANGING: tuple[Role, ...] = ("key", *ACTORS)
OF_ORGANIZATION = Operation(
    tag="organizations",
    roles=("key", "org:read", *READERS),
    path={"id": "The organisation."},
    answers={200: (OrganizationAnswer,)},
)
OF_MEMBER = msgspec.structs.replace(
    OF_ORGANIZATION,
    path={"id": "The organisation.", "user": "The member."},
    answers={200: (MemberAnswer,)},
)


def _asked(request: Request) -> tuple[Process, str, str]:
    """The process, the organisation's id and its tenant."""
    org_id = path_id(request)
    principal_of(request).check_organization(org_id)
    return process_of(request), org_id, tenant_of(org_id, "")


@described(
    msgspec.structs.replace(
        OF_ORGANIZATION, parameters=(MONTH,), errors={404: ("unknown_organization",)}
    )
)
async def read_organization(request: Request) -> Response:
    """An organisation's plan, and its members' joint use of a month."""
    process, _, tenant = _asked(request)
    month = _month(request)
    found = await process.records.organization(tenant)
    if found is None:
        raise Problem(404, "unknown_organization", "there is no such organisation")
    plan = await process.records.load_member(tenant, "", [])
    return await _organization(request, found, plan, month)


async def _plan_before(request: Request) -> object:
    _, _, tenant = _asked(request)
    return await process_of(request).records.organization(tenant)


@described(
    msgspec.structs.replace(
        OF_ORGANIZATION,
        roles=CHANGING,
        act=Act(name="limits", target="organization:{id}", before=_plan_before),
        body=OrganizationChange,
    )
)
async def put_organization(request: Request) -> Response:
    """Makes or changes an organisation.

    A new limit reaches live sessions at once. A missing field stays as it is, or takes its default:
    no limit, UTC, the tier `free`, no overage.
    """
    process, org_id, tenant = _asked(request)
    change = read_body(await raw_body(request), OrganizationChange)
    _check_timezone(change.timezone)
    _check_tier(change.tier, process.rates)
    try:
        row = await process.records.put_organization(
            tenant,
            org_id,
            tier=change.tier,
            timezone=change.timezone,
            monthly_hours_limit=change.monthly_hours_limit,
            allow_overage=change.allow_overage,
        )
    except RejectedError as error:
        # The bounds are checked above; the remaining cause is a zone that this machine has and
        # Postgres lacks.
        raise BadMessageError(f"timezone: the database refuses it: {error}") from error

    found = await apply_organization(process.live, process.records, tenant)
    process.ledger.forget_allotments(tenant)
    return await _organization(request, row, found)


@described(
    msgspec.structs.replace(OF_MEMBER, parameters=(MONTH,), errors={404: ("unknown_member",)})
)
async def read_member(request: Request) -> Response:
    """A member's own limit, and the use of a month."""
    process, org_id, tenant = _asked(request)
    user_id = path_id(request, "user")
    month = _month(request)
    row = await process.records.member(tenant, user_id)
    if row is None:
        raise Problem(404, "unknown_member", "there is no such member")
    return await _member(request, org_id, row, month)


async def _member_before(request: Request) -> object:
    _, _, tenant = _asked(request)
    return await process_of(request).records.member(tenant, path_id(request, "user"))


@described(
    msgspec.structs.replace(
        OF_MEMBER,
        roles=CHANGING,
        act=Act(name="limits", target="member:{id}/{user}", before=_member_before),
        body=MemberChange,
    )
)
async def put_member(request: Request) -> Response:
    """Makes or changes a member.

    A new limit reaches live sessions at once.
    """
    process, org_id, tenant = _asked(request)
    user_id = path_id(request, "user")
    change = read_body(await raw_body(request), MemberChange)
    row = await process.records.put_member(
        tenant, user_id, monthly_hours_limit=change.monthly_hours_limit
    )
    await apply_member(process.live, process.records, tenant, user_id)
    return await _member(request, org_id, row)


def _month(request: Request) -> str | None:
    month = request.query_params.get("month")
    if month is not None and re.fullmatch(MONTH_PATTERN, month) is None:
        raise BadMessageError("month: expected the first day of one, such as 2026-11-01")
    return month


async def _used(
    request: Request, tenant: str, user_id: str | None, timezone: str, month: str | None
) -> dict[str, Any]:
    """The requested or current month, and its recorded use."""
    month = month or calendar(timezone).month(process_of(request).clock.now())
    day = datetime.date.fromisoformat(month)
    found = await usage_of(request).of_month(tenant, user_id, day)
    return {
        "month": month,
        "minutes_used": found.minutes,
        "overage_minutes": found.overage_minutes,
    }


async def _organization(
    request: Request, row: OrganizationRow, found: MemberRecord, month: str | None = None
) -> Response:
    tenant = tenant_of(row.org_id, "")
    return answer(
        OrganizationAnswer(
            org_id=row.org_id,
            monthly_hours_limit=row.monthly_hours_limit,
            monthly_minutes_limit=found.org_limit_minutes,
            timezone=row.timezone,
            tier=row.tier,
            allow_overage=row.allow_overage,
            **await _used(request, tenant, None, row.timezone, month),
        )
    )


async def _member(
    request: Request, org_id: str, row: MemberRow, month: str | None = None
) -> Response:
    tenant = tenant_of(org_id, row.user_id)
    found = await process_of(request).records.load_member(tenant, row.user_id, [])
    return answer(
        MemberAnswer(
            org_id=org_id,
            user_id=row.user_id,
            monthly_hours_limit=row.monthly_hours_limit,
            monthly_minutes_limit=found.member_limit_minutes,
            **await _used(request, tenant, row.user_id, found.timezone, month),
        )
    )


@functools.cache
def _timezones() -> frozenset[str]:
    """Every zone of this machine.

    Cached, because the look-up reads hundreds of files.
    """
    return frozenset(zoneinfo.available_timezones())


def _check_timezone(name: str | UnsetType) -> None:
    if name is not UNSET and name not in _timezones():
        raise BadMessageError(_unknown("timezone", "time zone", name, _timezones()))


def _check_tier(tier: str | UnsetType, rates: RateCard) -> None:
    """Refuses a tier that the rate card does not name.

    A tier without an entry has no limits, so a misspelt name must not pass. On a rate card without
    any tier a tier is only a name, and all pass.
    """
    if tier is not UNSET and rates.tiers and tier not in rates.tiers:
        raise BadMessageError(_unknown("tier", "tier of the rate card", tier, rates.tiers))


def _unknown(field: str, what: str, name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return f"{field}: {name!r} is no {what}{hint}"


ROUTES = [
    Route("/v1/orgs/{id}", read_organization),
    Route("/v1/orgs/{id}", put_organization, methods=["PUT"]),
    Route("/v1/orgs/{id}/members/{user}", read_member),
    Route("/v1/orgs/{id}/members/{user}", put_member, methods=["PUT"]),
]
