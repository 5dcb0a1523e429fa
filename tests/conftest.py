"""What all tests share: the fixtures of real servers, one module `fixtures*.py` or several under tests/servers/."""

from pathlib import Path

pytest_plugins = [f"tests.servers.{path.stem}" for path in sorted((Path(__file__).parent / "servers").glob("fixtures*.py"))]
