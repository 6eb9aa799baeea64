"""Calls as sessions: what facts make of meters."""

from typing import get_type_hints

from server.calls.facts import CallTruth, Fact
from server.calls.metering import Billing, CallMapping, CallMeter, ParticipantFigures


def test_a_meter_takes_facts_and_truths_with_the_mapping() -> None:
    assert get_type_hints(CallMeter.apply)["fact"] is Fact
    assert get_type_hints(CallMeter.confirm)["truth"] is CallTruth
    assert get_type_hints(CallMeter.figures)["return"] == tuple[ParticipantFigures, ...]
    mapping = CallMapping(participants={"ann": Billing(user_id="ann", account_id="ann")})
    assert mapping.participants["ann"].devices == "union"
