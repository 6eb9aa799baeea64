"""Accounts in the record: open holds, and what is left of grants."""

import msgspec

from storage.rows.accounts import AccountRecord, GrantRow


def test_open_holds_are_parsed_with_any_id() -> None:
    record = AccountRecord(9, False, (), holds=("h/1/2000000", "call:x/5", "/0"))
    assert [(hold.hold_id, hold.amount_micros) for hold in record.open_holds] == [
        ("h/1", 2_000_000), ("call:x", 5), ("", 0),
    ]  # fmt: skip


def test_the_rest_of_a_grant_is_neither_used_nor_expired() -> None:
    grant = GrantRow("user:ann", "ann", "g", 10, 3, 0, 100, None, 1, None)
    assert grant.left_micros == 7
    assert msgspec.structs.replace(grant, expired_micros=7).left_micros == 0
