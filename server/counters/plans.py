"""Brings the limits of organisations and members from the record to Redis.

A limit changes in Postgres first. Then live sessions get a message, and ask again for what is left
to them.
"""

from collections.abc import Awaitable, Callable

from server import limits as server_limits
from storage.postgres.records import Records
from storage.redis.live import Live
from storage.rows.months import MemberRecord


async def apply_organization(live: Live, records: Records, tenant: str) -> MemberRecord:
    """Brings an organisation's limit, overage and time zone to its live sessions."""

    async def apply(found: MemberRecord) -> None:
        await live.change_limit(tenant, None, found.org_limit_minutes, overage=found.allow_overage)

    return await _apply(records, tenant, "", apply)


async def apply_member(live: Live, records: Records, tenant: str, user_id: str) -> MemberRecord:
    """Brings a member's own limit to the member's live sessions."""

    async def apply(found: MemberRecord) -> None:
        await live.change_limit(tenant, user_id, found.member_limit_minutes, overage=False)

    return await _apply(records, tenant, user_id, apply)


async def _apply(
    records: Records,
    tenant: str,
    user_id: str,
    apply: Callable[[MemberRecord], Awaitable[None]],
) -> MemberRecord:
    """Brings Postgres's limits to Redis, until they stay unchanged.

    Two changes at once may reach Redis in another order than Postgres. The request that applies
    last reads Postgres again after that. Either it finds the other request's change, or it wrote
    the last change itself.
    """
    found = await records.load_member(tenant, user_id, [])
    for _ in range(server_limits.LIMIT_CHANGE_ATTEMPTS_MAX):
        await apply(found)
        again = await records.load_member(tenant, user_id, [])
        if again == found:
            break
        found = again
    return found
