"""The roles that may send each message of the socket."""

from typing import Final

from protocol.wire import messages
from server.access.principals import ACTORS, PUBLIC, Role

MESSAGE_ROLES: Final[dict[type[messages.ClientMessage], tuple[Role, ...]]] = {
    # The first message, which says who the sender is.
    messages.Auth: PUBLIC,
    messages.Refresh: ("user",),
    messages.Start: ("user",),
    messages.Pause: ("user",),
    messages.Resume: ("user",),
    messages.Stop: ("user",),
    messages.Leave: ("user",),
    messages.Watch: ("user", *ACTORS),
    messages.Ping: ("user",),
}

# A new message without a role fails at import.
assert MESSAGE_ROLES.keys() == set(messages.CLIENT_MESSAGES)
