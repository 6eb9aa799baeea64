"""Waiting items of several owners are taken in turns."""

from server.runtime.round_robin import RoundRobin


def test_one_of_each_owner_after_the_other() -> None:
    waiting = RoundRobin[str]()
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        waiting.append(item[0], item)
    assert list(waiting.heads()) == ["a1", "b1", "c1"]
    taken = []
    while waiting:
        taken.append(waiting.popleft())
    assert taken == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert list(waiting.heads()) == []


def test_who_comes_later_is_behind_the_others_once() -> None:
    waiting = RoundRobin[str]()
    for item in ("a1", "a2"):
        waiting.append("a", item)
    assert waiting.popleft() == "a1"
    waiting.append("b", "b1")
    assert [waiting.popleft(), waiting.popleft()] == ["a2", "b1"]
    assert not waiting
