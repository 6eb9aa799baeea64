"""The names of everything in Redis.

All keys of one atomic step have one hash tag ``{pN}``, where N is the tenant's partition. So the
same code runs on one Redis and on Redis Cluster (DESIGN section 3). ``/`` joins the parts of a
name, because no id may contain it.
"""

import zlib

from protocol.metering.session import session_key

NODES = "{nodes}"
"""The processes, by their last heartbeat."""
CLOCK = "{nodes}:clock"
"""The last heartbeat of any process: the time of Redis, and cluster time."""
CHANNELS = "{nodes}:channels"
"""Whether the channels of a cluster are sharded, as its first process decided."""
LOOK_CHANNEL = "{nodes}:look"
"""The channel on which a starting process asks the living ones for a heartbeat."""

FIGURES = "{nodes}:figures"
"""The newest figures of each process, for the summary of all."""
SAMPLES = "{nodes}:samples"
"""The sums of all processes' figures, one for each second of the last hour, newest first."""
WATCHED = "{nodes}:watched"
"""Exists while a process wants the rows of live sessions."""
WATCH_CHANNEL = "{nodes}:watch"
"""The channel on which a process asks the others for all their rows."""
ROWS_CHANNEL = "{nodes}:rows"
"""The channel of rows of live sessions, for processes that show them."""


def epoch_key(partition: int) -> str:
    """A value that changes when the partition has lost data."""
    return f"{{p{partition}}}:epoch"


def outbox_key(partition: int) -> str:
    """A partition's records on their way to Postgres."""
    return f"{{p{partition}}}:outbox"


def watermark_key(partition: int) -> str:
    """The id up to which, inclusive, every entry has left the outbox."""
    return f"{{p{partition}}}:watermark"


def rejected_key(partition: int) -> str:
    """The stream of entries that Postgres refused.

    Append ``r`` to the outbox to try again.
    """
    return f"{{p{partition}}}:rejected"


def replayed_key(partition: int) -> str:
    """The newest record that was appended to the outbox again."""
    return f"{{p{partition}}}:replayed"


class Keys:
    """The keys of one deployment, whose number of partitions never changes."""

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions

    def partition(self, tenant: str) -> int:
        """Returns the partition of a tenant."""
        return zlib.crc32(tenant.encode()) % self.partitions

    def _key(self, tenant: str, kind: str, name: str) -> str:
        return f"{{p{self.partition(tenant)}}}:{kind}:{name}"

    @staticmethod
    def contained(counter: str) -> str:
        """What a counter had of sessions when loaded; kept a while."""
        partition, _, name = counter.partition(":")
        return f"{partition}:contained:{name}"

    def session(self, tenant: str, session_id: str) -> str:
        """A session's hash."""
        return self._key(tenant, "session", session_key(tenant, session_id))

    def prepared(self, tenant: str, session_id: str) -> str:
        """The preparation of an unstarted session; kept for a while."""
        return self._key(tenant, "prepared", session_key(tenant, session_id))

    def notices(self, tenant: str, session_id: str) -> str:
        """The newest notices of a session."""
        return self._key(tenant, "notices", session_key(tenant, session_id))

    def sockets(self, tenant: str, session_id: str) -> str:
        """The processes that have sockets of a session."""
        return self._key(tenant, "sockets", session_key(tenant, session_id))

    def account(self, tenant: str, account_id: str) -> str:
        """A credit account's hash."""
        return self._key(tenant, "account", f"{tenant}/{account_id}")

    def applied(self, tenant: str, account_id: str) -> str:
        """The newest entries of money in that an account has taken."""
        return self._key(tenant, "applied", f"{tenant}/{account_id}")

    def spends(self, tenant: str, account_id: str) -> str:
        """An account's newest spends, by their records' instants in the outbox."""
        return self._key(tenant, "spends", f"{tenant}/{account_id}")

    def operations(self, tenant: str, account_id: str) -> str:
        """How often an account's operations were done, by month."""
        return self._key(tenant, "operations", f"{tenant}/{account_id}")

    def hold(self, tenant: str, hold_id: str) -> str:
        """A hold for an operation."""
        return self._key(tenant, "hold", f"{tenant}/{hold_id}")

    def member(self, tenant: str, user_id: str) -> str:
        """A member's months."""
        return self._key(tenant, "member", f"{tenant}/{user_id}")

    def organization(self, tenant: str) -> str:
        """An organisation's months."""
        return self._key(tenant, "org", tenant)

    def running(self, tenant: str, user_id: str, kind: str) -> str:
        """A user's live sessions of a kind that bounds their number."""
        return self._key(tenant, "running", f"{tenant}/{user_id}/{kind}")

    def free(self, tenant: str, allowance: str) -> str:
        """A shared allowance of free time."""
        return self._key(tenant, "free", f"{tenant}/{allowance}")

    def outbox(self, partition: int) -> str:
        """A partition's records on their way to Postgres."""
        return outbox_key(partition)

    def watermark(self, partition: int) -> str:
        """The id up to which, inclusive, every entry has left the outbox."""
        return watermark_key(partition)

    def epoch(self, partition: int) -> str:
        """A value that changes when the partition has lost data."""
        return epoch_key(partition)

    def recovering(self, partition: int) -> str:
        """Exists after a loss, while Redis takes assertions only."""
        return f"{{p{partition}}}:recovering"

    def unsettled(self, partition: int) -> str:
        """Exists after a loss while processes may put back sessions."""
        return f"{{p{partition}}}:unsettled"

    def replayed(self, partition: int) -> str:
        """The newest record that was appended to the outbox again."""
        return replayed_key(partition)

    def live(self, partition: int) -> str:
        """A partition's live sessions."""
        return f"{{p{partition}}}:live"

    def graces(self, partition: int) -> str:
        """A partition's sessions in grace, by the end of the grace."""
        return f"{{p{partition}}}:graces"

    def holds(self, partition: int) -> str:
        """A partition's open holds, by the instant of their expiry."""
        return f"{{p{partition}}}:holds"

    def node(self, partition: int, node: str) -> str:
        """The sessions of a partition that a process has sockets of."""
        return f"{{p{partition}}}:node:{node}"

    def channel(self, tenant: str, account_id: str) -> str:
        """The channel for changes of an account and of its sessions."""
        return self._key(tenant, "channel", f"{tenant}/{account_id}")

    def streams_channel(self, node: str) -> str:
        """The channel for requests to the event streams of a process."""
        return self._key(node, "streams", node)

    def usage_channel(self, tenant: str, user_id: str) -> str:
        """The channel for changes of a member's month."""
        return self._key(tenant, "usage", f"{tenant}/{user_id}")

    def limits_channel(self, tenant: str) -> str:
        """The channel for changes of an organisation's and its members' limits."""
        return self._key(tenant, "limits", tenant)
