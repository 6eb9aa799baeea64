"""Whose call it is: plans, the call's own data, and the default."""

from pathlib import Path

import pytest

from server.calls.billing import Billing
from server.calls.mapping import CallPlan, PlannedParticipant, billing_of
from server.runtime.rate_card_file import load_rate_card

RATES = load_rate_card(Path(__file__).parents[2] / "rates.toml")
ANN = PlannedParticipant(user_id="ann", org_id="acme", account_id="school")
BEN = PlannedParticipant(user_id="ben")


def test_by_default_the_providers_user_is_ours() -> None:
    assert billing_of("ann", None, {}, RATES) == Billing(user_id="ann", account_id="ann")


def test_a_plan_names_users_organisation_and_account() -> None:
    plan = CallPlan(participants={"p1": ANN, "p2": BEN}, org_id="other", devices="sum")
    assert billing_of("p1", plan, {"org": "x"}, RATES) == Billing(
        user_id="ann", org_id="acme", account_id="school", devices="sum"
    )
    assert billing_of("p2", plan, {}, RATES) == Billing(
        user_id="ben", org_id="other", account_id="ben", devices="sum"
    )


@pytest.mark.parametrize(
    ("payer", "account"), [("each", "ben"), ("host", "school"), ("ann", "school"), ("eve", "eve")]
)
def test_payers_of_one_organisation(payer: str, account: str) -> None:
    plan = CallPlan(participants={"p1": ANN, "p2": BEN}, org_id="acme", payer=payer, host="p1")
    assert billing_of("p2", plan, {}, RATES) == Billing(
        user_id="ben", org_id="acme", account_id=account
    )


def test_the_provider_may_name_the_host() -> None:
    plan = CallPlan(payer="host", org_id="acme")
    found = billing_of("ben", plan, {"host": "ann"}, RATES)
    assert found == Billing(user_id="ben", org_id="acme", account_id="ann")


@pytest.mark.parametrize(
    ("participant", "plan", "custom", "because"),
    [
        ("an n", None, {}, "bad_user_id"),
        ("p3", CallPlan(participants={"p1": ANN}), {}, "not_in_plan"),
        ("p1", CallPlan(kind="chat"), {}, "unknown_kind"),
        ("p1", CallPlan(kind="nothing"), {}, "unknown_kind"),
        ("ann", CallPlan(payer="host"), {}, "unknown_host"),
        ("ann", CallPlan(payer="host"), {"host": "no id"}, "bad_user_id"),
        ("ben", CallPlan(payer="ann"), {}, "payer_elsewhere"),
        ("ann", None, {"payer": "no id"}, "bad_call_data"),
        ("ann", None, {"devices": "most"}, "bad_call_data"),
        ("ann", None, {"kind": "video"}, "unknown_kind"),
    ],
)
def test_what_cannot_be_mapped_says_why(
    participant: str, plan: CallPlan | None, custom: dict[str, str], because: str
) -> None:
    assert billing_of(participant, plan, custom, RATES) == because


def test_the_payer_pays_for_himself_without_an_organisation() -> None:
    plan = CallPlan(payer="ann")
    assert billing_of("ann", plan, {}, RATES) == Billing(user_id="ann", account_id="ann")
