"""What all tests share: the fixtures of real servers, one module `fixtures*.py` or several under tests/servers/."""

from pathlib import Path

from hypothesis import settings

# How long an example takes says something of the machine alone.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

pytest_plugins = [f"tests.servers.{path.stem}" for path in sorted((Path(__file__).parent / "servers").glob("fixtures*.py"))]
