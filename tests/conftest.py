"""Fixtures of every test: real engines, own database, real server."""

import structlog
from hypothesis import HealthCheck, settings

pytest_plugins = [
    "tests.fixtures.engines",
    "tests.fixtures.database",
    "tests.fixtures.environment",
    "tests.fixtures.server",
    "tests.simulation.fixtures",
]

# No test may depend on the machine's speed, so Hypothesis has no deadline either.
settings.register_profile("taximeter", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("taximeter")

# With rich installed, structlog draws every traceback with all variables of its frames: a test that
# provokes errors would wait for the drawing.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
        structlog.dev.ConsoleRenderer(
            colors=False, exception_formatter=structlog.dev.plain_traceback
        ),
    ]
)
