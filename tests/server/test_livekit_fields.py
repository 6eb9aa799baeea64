"""LiveKit's fields, in both ways to write them."""

from typing import Any

from server.calls.livekit_fields import custom_of, flag, is_person, is_present, number, text


def test_fields_of_protobuf_s_json() -> None:
    said = {"joinedAtMs": "5", "creation_time": 6, "name": "x", "is_publisher": True}
    assert number(said, "joinedAtMs") == 5
    assert number(said, "creationTime") == 6
    assert (number(said, "absent"), text(said, "absent"), text(said, "name")) == (0, "", "x")
    assert flag(said, "isPublisher")
    assert not flag(said, "absent")


def test_people_and_presence() -> None:
    people: list[dict[str, Any]] = [
        {},
        {"kind": "SIP"},
        {"kind": 3},
        {"permission": None},
        {"permission": {}},
    ]
    for person in people:
        assert is_person(person)
    machines: list[dict[str, Any]] = [
        {"kind": "AGENT"},
        {"kind": 2},
        {"kind": "NEW"},
        {"kind": []},
        {"kind": 99},
    ]
    for machine in machines:
        assert not is_person(machine)
    assert is_present({"state": "ACTIVE"})
    assert is_present({"state": 1})
    states: list[Any] = ["JOINING", 0, 3, None, {}]
    for state in states:
        assert not is_present({"state": state})


def test_a_room_s_metadata_are_custom_data_when_they_are_an_object() -> None:
    assert custom_of({"metadata": '{"payer":"ann","deep":{}}'}) == {"payer": "ann"}
    for metadata in ("", "words", "[]", "{", "5", '{"a":' * 100_000):
        assert custom_of({"metadata": metadata}) == {}
