"""Whether the caller of a request was killed: the only reason to give a request up.

A signal that a program handles must not make its reads fail: hardly any program expects EINTR of a file, a page fault would
turn it into SIGBUS, and profilers and runtimes send signals all the time. The kernel says only that some signal came, and only
once; whether the caller was killed is in /proc. Blocking, but short; safe from any thread.
"""

import signal

_KILL = 1 << (signal.SIGKILL - 1)


def is_killed(thread: int) -> bool:
    """Whether a thread has SIGKILL pending (any fatal signal becomes one) or is gone; False where that cannot be known."""
    if thread <= 0:
        return False  # of a process that this one cannot see
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            status = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
    for line in status.splitlines():  # noqa: SIM110
        if line.startswith((b"SigPnd:", b"ShdPnd:")) and int(line.split()[1], 16) & _KILL:
            return True
    return False
