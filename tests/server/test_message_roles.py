"""Every message of the socket has roles."""

from protocol.wire.messages import CLIENT_MESSAGES
from server.gateway.message_roles import MESSAGE_ROLES

SOCKET_ROLES = {
    "user": {"refresh", "start", "pause", "resume", "stop", "leave", "watch", "ping"},
    "ops": {"watch"},
}
"""The messages by which each role reaches data; `auth` is everyone's."""


def test_every_message_of_the_socket_has_roles() -> None:
    found: dict[str, set[str]] = {}
    for message, roles in MESSAGE_ROLES.items():
        for role in roles:
            found.setdefault(role, set()).add(str(message.__struct_config__.tag))
    assert found == SOCKET_ROLES
    assert set(MESSAGE_ROLES) == set(CLIENT_MESSAGES)
