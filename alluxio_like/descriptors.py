"""How many files a service may have open: as many as the machine lets it, for whoever owns the process (never a library's user).

A mount's daemon has a descriptor or two open for each file that a program has open there, and what a service is started with is
often 1,024.
"""

import contextlib
import resource
from pathlib import Path


def raise_limit() -> int:
    """At the start of a service; what is started later by it has the same. What it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _get_machines_most()
    with contextlib.suppress(OSError, ValueError):
        if most > hard:
            # Takes CAP_SYS_RESOURCE.
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            return most
    with contextlib.suppress(OSError, ValueError):
        wanted = most if hard == resource.RLIM_INFINITY else hard
        if wanted > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _get_machines_most() -> int:
    try:
        return int(Path("/proc/sys/fs/nr_open").read_text())
    except (OSError, ValueError):
        return 0
