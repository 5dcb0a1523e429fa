"""How many files a service may have open."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, sys
from alluxio_like.descriptors import raise_limit
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
if len(sys.argv) == 3:
    import os
    if os.geteuid() == 0:
        os.setuid(65534)
print(raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def raise_from(soft: int, hard: int, *, as_nobody: bool) -> list[int]:
    script = SCRIPT if as_nobody else SCRIPT.replace("len(sys.argv) == 3", "False")
    done = subprocess.run([sys.executable, "-c", script, str(soft), str(hard)], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_a_user_gets_what_the_hard_limit_allows() -> None:
    assert raise_from(256, 2000, as_nobody=True) == [2000, 2000, 2000]
    assert raise_from(2000, 2000, as_nobody=True) == [2000, 2000, 2000]


def test_who_may_gets_what_the_machine_allows() -> None:
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    found = raise_from(256, 2000, as_nobody=False)
    if found[0] == 2000:
        pytest.skip("this process may not raise hard limits")
    assert found == [most, most, most]
