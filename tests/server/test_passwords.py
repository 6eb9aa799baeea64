"""Passwords of operators."""

import pytest

from server.access.passwords import check_password, hash_password, matches


def test_hash_is_argon2id_with_a_salt_of_its_own() -> None:
    first, second = hash_password("correct horse"), hash_password("correct horse")
    assert first.startswith("$argon2id$")
    assert first != second
    for kept in (first, second):
        assert "correct" not in kept
        assert matches(kept, "correct horse")
        for wrong in ("correct horsE", "correct horse ", "", "correct horse\0"):
            assert not matches(kept, wrong)


def test_without_a_hash_nothing_matches() -> None:
    assert not matches(None, "correct horse")
    assert not matches(None, "the hash of no operator")


@pytest.mark.parametrize(
    "bad", ["", "short", "x" * 11, "x" * 1025, "olga-the-great", "OLGA-THE-GREAT "]
)
def test_a_password_that_is_easy_to_guess_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="password"):
        check_password("olga-the-great", bad)


def test_a_long_password_may_have_any_characters() -> None:
    check_password("olga", "pass\u00e9 \u2603 with spaces")
