"""Short pauses of a service's event loop that its own process makes.

Owns two settings of the interpreter, for whoever owns the process (never a library's user). A thread that wants to run Python
while another one does, the event loop after each wait included, is let in after the switch interval: 5 ms by default, which shows
as the slowest hundredth of all small reads where threads beside the loop have anything to do. And the collector walks all that
was imported each time it looks for old garbage: tens of milliseconds, in which nobody is answered.
"""

import gc
import sys

_SWITCH_S = 0.0005
"""A guess: ten times what a switch between threads costs."""


def keep_short() -> None:
    """At the start of a service, when what it needs is imported."""
    sys.setswitchinterval(_SWITCH_S)
    gc.freeze()
