"""Which hosts are this machine."""

import pytest

from server.runtime.loopback import is_local_database, is_local_redis, is_loopback


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("localhost", True), ("LocalHost", True),
        ("localhost.", True), ("::1", True), ("[::1]", True), ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False), ("::", False), ("", False), ("10.0.0.1", False), ("*", False),
        ("localhost.example", False), ("127.0.0.1.example", False), ("example.com", False),
        ("::ffff:10.0.0.1", False), ("127.1", False), ("0", False),
    ],
)  # fmt: skip
def test_loopback_is_told_from_everything_else(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1:6379/0", True), ("redis://localhost", True), ("rediss://[::1]", True),
        ("redis://", True), ("redis:///0", True), ("unix:///run/redis.sock", True),
        ("unix://u:p@/run/redis.sock?db=1", True), ("redis://u:127.0.0.1@cache", False),
        ("redis://cache.example", False), ("redis:///0?host=cache.example", False),
        ("redis+cluster://127.0.0.1:1,[::1]:2", True),
        ("redis+cluster://127.0.0.1:1,cache.example:2", False),
    ],
)  # fmt: skip
def test_a_local_redis_is_told_from_another(url: str, expected: bool) -> None:
    assert is_local_redis(url) is expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@127.0.0.1:5432/db", True), ("postgres://localhost/db", True),
        ("postgresql:///db", True), ("postgresql://u@/db?host=/run/postgresql", True),
        ("postgresql://%2Frun%2Fpostgresql/db", True), ("postgresql://[::1]:5432/db", True),
        ("postgresql://127.0.0.1:1,localhost:2/db", True),
        ("postgresql://u@127.0.0.1:127.0.0.1@db.example/x", False),
        ("postgresql://db.example/db", False), ("postgresql://10.0.0.5:5432/db", False),
        ("postgresql://127.0.0.1:1,db.example:2/db", False),
        ("postgresql:///db?host=db.example", False),
        ("postgresql:///db?host=/run,db.example", False),
        ("postgresql:///?service=production", False),
        ("postgresql://localhost/db?hostaddr=10.0.0.5", False),
    ],
)  # fmt: skip
def test_a_local_database_is_told_from_another(url: str, expected: bool) -> None:
    assert is_local_database(url) is expected


def test_the_environment_may_name_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example")
    assert not is_local_database("postgresql:///db")
    assert is_local_database("postgresql://127.0.0.1/db")
    monkeypatch.setenv("PGHOST", "/run/postgresql")
    assert is_local_database("postgresql:///db")
    monkeypatch.setenv("PGSERVICE", "production")
    assert not is_local_database("postgresql:///db")
