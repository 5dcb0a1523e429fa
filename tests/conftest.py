"""What all tests share: the fixtures of real servers, one module `fixtures*.py` or several under tests/servers/."""

import os
from pathlib import Path

from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine alone. Examples are the same in every run, so that no change is refused
# for what another one brought; others are drawn each time where that is asked for.
settings.register_profile(
    "any machine",
    deadline=None,
    derandomize=not {"ALLUXIO_LIKE_TEST_SOAK", "ALLUXIO_LIKE_TEST_CHANCE"} & os.environ.keys(),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any machine")

_SERVERS = sorted((Path(__file__).parent / "servers").glob("fixtures*.py"))
pytest_plugins = ["tests.hangs", *(f"tests.servers.{path.stem}" for path in _SERVERS)]
