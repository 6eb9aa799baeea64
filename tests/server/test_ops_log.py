"""The ids of actions, and the answers that the operators' log keeps."""

from server.access.principals import Principal
from server.ops import limits as ops_limits
from server.ops.log import action_id_of, kept_answer

OLGA = Principal(kind="operator", user_id="olga")


def test_an_action_id_is_the_same_at_every_attempt_and_for_nothing_else() -> None:
    first = action_id_of(OLGA, "credit /a", "k1", b"{}")
    assert action_id_of(OLGA, "credit /a", "k1", b"{}") == first
    others = {
        action_id_of(Principal(kind="operator", user_id="rita"), "credit /a", "k1", b"{}"),
        action_id_of(Principal(kind="user", user_id="olga"), "credit /a", "k1", b"{}"),
        action_id_of(OLGA, "credit /b", "k1", b"{}"),
        action_id_of(OLGA, "credit /a", "k2", b"{}"),
        action_id_of(OLGA, "credit /a", "k1", b"{ }"),
        action_id_of(OLGA, "credit /a", None, b"{}"),
        action_id_of(OLGA, "credit /a", None, b"{}"),
    }
    assert len(others | {first}) == 8


def test_a_long_answer_is_not_kept() -> None:
    most = ops_limits.LOGGED_ANSWER_BYTES_MAX
    assert kept_answer(b"x" * most) == b"x" * most
    assert kept_answer(b"x" * (most + 1)) is None
