"""Which session a mount gets: our own where this process may mount, else pyfuse3.

Looks at this process and the kernel only. Imports nothing heavy, since commands ask before they start anything. Safe from any
thread.
"""

import logging
import os
import re
from pathlib import Path

from alluxio_like.errors import ConfigError

log = logging.getLogger(__name__)

_CAP_SYS_ADMIN = 21


def choose_session(wanted: str) -> str:
    """The session to use, for `session` of the configuration: kernel or pyfuse3. Raises ConfigError where kernel is not
    possible."""
    if wanted == "pyfuse3":
        return wanted
    why_not = find_why_not_kernel()
    if not why_not:
        return "kernel"
    if wanted == "kernel":
        raise ConfigError(f"the kernel session cannot be used: {why_not}", subject="session")
    log.info("using pyfuse3: %s", why_not)
    return "pyfuse3"


def find_why_not_kernel() -> str:
    """Why this process cannot serve a mount by itself; empty: it can."""
    numbers = [int(number) for number in re.findall(r"\d+", os.uname().release)[:2]]
    if numbers < [5, 10]:
        return f"it needs Linux 5.10, this is {os.uname().release}"
    effective = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    return "" if effective >> _CAP_SYS_ADMIN & 1 else "it needs root (CAP_SYS_ADMIN)"
