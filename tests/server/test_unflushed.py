"""What a process keeps until Postgres has it."""

import pytest

from protocol.metering.records import EntryPosted
from protocol.metering.steps import started_record
from server import limits as server_limits
from server.sessions.unflushed import UnflushedEntries
from tests.protocol.examples import session_of

RECORD = EntryPosted("user:ann", "ann", "e", "grant", 1, 1)


def kept(unflushed: UnflushedEntries, partition: int = 0) -> list[str]:
    return [one.entry_id for one in unflushed.entries(partition)]


def test_flushed_entries_are_forgotten_in_stream_order() -> None:
    unflushed = UnflushedEntries()
    for entry_id in ("9-0", "10-0", "10-2", "10-10"):
        unflushed.keep(0, entry_id, [RECORD])
    unflushed.keep(1, "5-0", [RECORD])
    unflushed.forget({0: b"10-2", 1: None})
    assert (kept(unflushed), kept(unflushed, 1), len(unflushed)) == (["10-10"], ["5-0"], 2)
    # The acknowledgement of nothing yet names the end of the millisecond before.
    unflushed.forget({0: b"10-18446744073709551615", 1: b"4-18446744073709551615"})
    assert (unflushed.partitions, len(unflushed)) == ({1}, 1)


def test_what_was_appended_again_has_its_new_name() -> None:
    unflushed = UnflushedEntries()
    unflushed.keep(0, "9-0", [RECORD])
    unflushed.replaced(0, unflushed.entries(0)[0], "12-0")
    unflushed.forget({0: b"9-0"})
    assert (kept(unflushed), len(unflushed)) == (["12-0"], 1)
    unflushed.forget({0: b"12-0"})
    assert (unflushed.partitions, len(unflushed)) == (set(), 0)


def test_so_much_is_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_limits, "UNFLUSHED_ENTRIES_MAX", 3)
    unflushed = UnflushedEntries()
    for number in range(5):
        unflushed.keep(0, f"{number}-0", [RECORD])
    assert (kept(unflushed), unflushed.dropped) == (["2-0", "3-0", "4-0"], 2)


def test_a_session_is_written_before_its_entries() -> None:
    """Postgres may have neither record: another process appended the beginning.

    Minutes without their session are not found when an account is loaded, and are charged again.
    """
    unflushed, session = UnflushedEntries(), session_of()
    started = started_record(session.identity)
    unflushed.keep(0, "9-0", [started, RECORD], session)
    unflushed.keep(0, "9-1", [RECORD], session)
    unflushed.keep(0, "9-2", [RECORD])
    assert [one.whole for one in unflushed.entries(0)] == [
        [started, RECORD],
        [started, RECORD],
        [RECORD],
    ]


def test_two_entries_of_one_id_are_kept() -> None:
    unflushed = UnflushedEntries()
    other = EntryPosted("user:bob", "bob", "f", "grant", 1, 1)
    unflushed.keep(0, "9-0", [RECORD])
    unflushed.keep(0, "9-0", [RECORD])
    assert (kept(unflushed), unflushed.in_doubt) == (["9-0"], set())
    unflushed.keep(0, "9-0", [other])
    lost, new = unflushed.entries(0)
    assert ([*lost.records], [*new.records], new.entry_id) == ([RECORD], [other], "9-0")
    assert (unflushed.in_doubt, len(unflushed)) == ({0}, 2)
    unflushed.forget({0: b"999999999999999-0"})
    assert lost in unflushed.entries(0)
    unflushed.replaced(0, lost, "10-0")
    unflushed.forget({0: b"10-0"})
    assert len(unflushed) == 0
