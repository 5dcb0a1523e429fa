"""Starts the holder in an interpreter without site-packages (`python -I -S holder_main.py DESCRIPTOR`): it needs none of them.

A program, not a module to import. Its argument is a descriptor that holds the plan (holder.Plan, JSON). With a second one,
`joiner`, it is the process that keeps a holder's daemons going from elsewhere (joiner.py).
"""

import os
import sys

if __name__ == "__main__":
    # .../alluxio_like/fuse/holder_main.py
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120
    if sys.argv[2:] == ["joiner"]:
        from alluxio_like.fuse.joiner import main
    else:
        from alluxio_like.fuse.holder import main

    sys.exit(main(int(sys.argv[1])))
