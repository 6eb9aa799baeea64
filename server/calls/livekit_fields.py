"""Reads LiveKit's JSON: protobuf's, in webhooks and REST.

Names are `camelCase` in webhooks and `snake_case` in REST; 64-bit numbers are texts; fields with
their default value may be absent.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from server.calls.event_fields import LAST_NS, custom_texts, malformed

PEOPLE: Final = frozenset({"STANDARD", "SIP", "CONNECTOR", 0, 3, 7})
"""Kinds of participants who are people: in an application, on the phone, in a messenger. Ingress,
egress, agents, bridges, and what LiveKit may add, are machines."""
PRESENT: Final = frozenset({"JOINED", "ACTIVE", 1, 2})
"""States in which a participant is in the room."""


MACHINE_FLAGS: Final = ("recorder", "agent")
"""Permissions of machines, from servers that do not know kinds."""


def _value(fields: Mapping[str, Any], name: str) -> Any:
    if name in fields:
        return fields[name]
    return fields.get(re.sub(r"(?=[A-Z])", "_", name).lower())


def text(fields: Mapping[str, Any], name: str) -> str:
    """A text; empty when absent."""
    found = _value(fields, name)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise malformed(f"{name} is no text")
    return found


def number(fields: Mapping[str, Any], name: str) -> int:
    """An integer; 0 when absent."""
    found = _value(fields, name)
    if found is None:
        return 0
    if isinstance(found, str) and re.fullmatch(r"[0-9]{1,20}", found):
        found = int(found)
    is_number = isinstance(found, int) and not isinstance(found, bool)
    if not is_number or not 0 <= found <= LAST_NS // 1_000_000:
        raise malformed(f"{name} is no such number")
    return int(found)


def flag(fields: Mapping[str, Any], name: str) -> bool:
    """A flag; false when absent."""
    return _value(fields, name) is True


def is_person(participant: Mapping[str, Any]) -> bool:
    """Whether a participant is a person, as far as LiveKit says."""
    permission = participant.get("permission")
    if isinstance(permission, Mapping) and any(flag(permission, name) for name in MACHINE_FLAGS):
        return False
    kind = participant.get("kind", 0)
    return not isinstance(kind, list | dict) and kind in PEOPLE


def is_present(participant: Mapping[str, Any]) -> bool:
    """Whether a participant is in the room now."""
    state = participant.get("state", 0)
    return not isinstance(state, list | dict) and state in PRESENT


def custom_of(room: Mapping[str, Any]) -> dict[str, str]:
    """The custom data of a room: metadata that are a JSON object."""
    metadata = text(room, "metadata")
    if not metadata.startswith("{"):
        return {}
    try:
        return custom_texts(msgspec.json.decode(metadata, type=dict[str, Any]))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}
