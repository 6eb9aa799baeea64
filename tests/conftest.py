"""The fixtures of every test: the real engines, a database of one's own, a real server."""

from hypothesis import HealthCheck, settings

pytest_plugins = [
    "tests.fixtures.engines",
    "tests.fixtures.database",
    "tests.fixtures.server",
    "tests.simulation.fixtures",
]

# No test may depend on the machine's speed, so Hypothesis has no deadline either.
settings.register_profile("taximeter", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("taximeter")
