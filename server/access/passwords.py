"""Passwords of operators: argon2id (RFC 9106), with the library's parameters.

A check takes 160 ms of a core and 64 MiB, so a process begins few in a second; see
``server/ops/sign_in.py``.
"""

import functools

import argon2

from server.access import limits as access_limits

_HASHER = argon2.PasswordHasher(type=argon2.Type.ID)


def check_password(name: str, password: str) -> None:
    """Raises ValueError for a password that cannot be kept.

    It is too short, too long, or the name.
    """
    least, most = access_limits.PASSWORD_CHARACTERS_MIN, access_limits.PASSWORD_CHARACTERS_MAX
    if not least <= len(password) <= most:
        raise ValueError(f"a password has {least} to {most} characters")
    if password.casefold().strip() == name.casefold():
        raise ValueError("the password must not be the name")


def hash_password(password: str) -> str:
    """The hash to keep, with its salt and parameters in its text."""
    return _HASHER.hash(password)


def matches(password_hash: str | None, password: str) -> bool:
    """Whether a password is the one of a hash.

    Without a hash this takes the same time, so an answer's time names no operator.
    """
    decoy = _decoy()
    try:
        return _HASHER.verify(password_hash or decoy, password) and password_hash is not None
    except argon2.exceptions.VerifyMismatchError:
        return False


@functools.cache
def _decoy() -> str:
    return hash_password("the hash of no operator")
