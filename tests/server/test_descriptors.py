"""The limit of open files becomes as high as possible."""

import resource

import pytest

from server.runtime.descriptors import raise_descriptor_limit


class Limit:
    """Stands in for the kernel's limit of open files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
        self.value = (soft, hard)
        monkeypatch.setattr(resource, "getrlimit", lambda _: self.value)
        monkeypatch.setattr(resource, "setrlimit", lambda _, value: setattr(self, "value", value))


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "sockets"),
    [
        (1_024, 4_096, 4_096, 4_096 - 128),
        (1_024, 1_048_576, 65_536, 65_536 - 128),
        (1_024, resource.RLIM_INFINITY, 65_536, 65_536 - 128),
        (100_000, 1_048_576, 100_000, 100_000 - 128),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY, 65_536 - 128),
        (64, 64, 64, 1),
    ],
)
def test_the_descriptor_limit_is_raised(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: int, sockets: int
) -> None:
    limit = Limit(monkeypatch, soft, hard)
    assert raise_descriptor_limit() == sockets
    assert limit.value == (raised, hard)
