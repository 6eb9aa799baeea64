"""Whose a call is: by plan, by its data, by default.

A backend's plan counts for a participant that it names. For others the call's custom data counts,
and then the default: the provider's user id is ours, and the kind is ``call``. A participant who
fits none of these is parked, with the reason, until a backend puts a plan. The first mapping of a
participant in a run stays: a session does not change its payer.
"""

from typing import Annotated, Literal

import msgspec

from protocol import limits
from protocol.rate_card import RateCard
from protocol.wire.fields import UserId, describe, describe_id, is_id
from server.access.principals import tenant_of
from server.calls.billing import Billing, Devices
from server.calls.limits import CALL_PARTICIPANTS_PLANNED_MAX

KIND_DEFAULT = "call"
EACH, HOST = "each", "host"
CUSTOM_NAMES = ("payer", "org", "kind", "devices", "host")

ParkedBecause = Literal[
    "bad_user_id", "not_in_plan", "unknown_kind", "unknown_host", "payer_elsewhere", "bad_call_data"
]
"""Why a participant is parked: stable codes of the list of parked calls."""


class PlannedParticipant(msgspec.Struct, frozen=True, kw_only=True):
    """Our user behind a provider's user id."""

    user_id: UserId
    org_id: (
        Annotated[str, describe_id("The user's organisation; left out, the call's `?org=`.")] | None
    ) = None
    account_id: (
        Annotated[str, describe_id("The credit account; left out, the user's own.")] | None
    ) = None


class CallPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a call is, as a backend says before or after it."""

    participants: Annotated[
        dict[str, PlannedParticipant],
        msgspec.Meta(
            max_length=CALL_PARTICIPANTS_PLANNED_MAX,
            description="Our users by the provider's user ids. With any, a participant whom it "
            "lacks is parked; without any, the provider's user ids are ours.",
        ),
    ] = {}
    payer: Annotated[
        str,
        describe_id(
            "Whose account pays for every participant: `each` their own, `host` the host's, or "
            "the account of the user of this id."
        ),
    ] = EACH
    host: (
        Annotated[
            str,
            msgspec.Meta(
                min_length=1,
                max_length=limits.ID_CHARACTERS_MAX,
                description="The host, by the provider's user id; left out, as the provider says.",
            ),
        ]
        | None
    ) = None
    kind: Annotated[str, describe_id("A kind of the rate card with an outside clock.")] = (
        KIND_DEFAULT
    )
    devices: Annotated[
        Devices,
        describe("How several devices of one participant count: once, or each for itself."),
    ] = "union"
    org_id: Annotated[str, describe_id("The organisation of participants without one.")] | None = (
        None
    )


def billing_of(
    participant: str, plan: CallPlan | None, custom: dict[str, str], rates: RateCard
) -> Billing | ParkedBecause:
    """On whom a participant's time is counted, or why none is."""
    if plan is None:
        made = plan_of_custom(custom)
        if made is None:
            return "bad_call_data"
        plan = made
    host = plan.host or custom.get("host")
    terms = rates.kinds.get(plan.kind)
    if terms is None or terms.clock != "provider":
        return "unknown_kind"
    person = _person(participant, plan)
    if isinstance(person, str):
        return person
    payer = _payer(person, host, plan)
    if isinstance(payer, str):
        return payer
    if _tenant(payer) != _tenant(person):
        return "payer_elsewhere"
    return Billing(
        user_id=person.user_id,
        org_id=person.org_id,
        account_id=payer.account_id or payer.user_id,
        kind=plan.kind,
        devices=plan.devices,
    )


def kept_custom(custom: dict[str, str]) -> dict[str, str]:
    """What the inbox keeps of a call's own data."""
    return {name: custom[name] for name in CUSTOM_NAMES if custom.get(name)}


def plan_of_custom(custom: dict[str, str]) -> CallPlan | None:
    """The plan in a call's own data; None for malformed data.

    The fields are those of a plan, and ``org`` is the organisation.
    """
    names = {"payer": "payer", "org": "org_id", "kind": "kind", "devices": "devices"}
    given = {field: custom[name] for name, field in names.items() if custom.get(name)}
    try:
        return msgspec.convert(given, CallPlan)
    except msgspec.ValidationError:
        return None


def _person(participant: str, plan: CallPlan) -> PlannedParticipant | ParkedBecause:
    """Our user behind a participant."""
    if plan.participants:
        found = plan.participants.get(participant)
        if found is None:
            return "not_in_plan"
        return msgspec.structs.replace(found, org_id=found.org_id or plan.org_id)
    if not is_id(participant):
        return "bad_user_id"
    return PlannedParticipant(user_id=participant, org_id=plan.org_id)


def _payer(
    person: PlannedParticipant, host: str | None, plan: CallPlan
) -> PlannedParticipant | ParkedBecause:
    """Who pays for a participant."""
    if plan.payer == EACH:
        return person
    if plan.payer == HOST:
        return "unknown_host" if host is None else _person(host, plan)
    for planned in plan.participants.values():
        if planned.user_id == plan.payer:
            return msgspec.structs.replace(planned, org_id=planned.org_id or plan.org_id)
    return PlannedParticipant(user_id=plan.payer, org_id=plan.org_id)


def _tenant(person: PlannedParticipant) -> str:
    return tenant_of(person.org_id, person.user_id)
