"""Spends and holds on three masters, by the tests of one Redis."""

import pytest

from tests.fixtures.redis_cluster import RedisCluster
from tests.storage.test_spending import *  # noqa: F403
from tests.storage.test_spending_holds import *  # noqa: F403


@pytest.fixture
def redis_url(redis_cluster: RedisCluster) -> str:
    """A cluster instead of one Redis."""
    return redis_cluster.url
