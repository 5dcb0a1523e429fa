"""Starts the holder in an interpreter without site-packages (`python -I -S holder_main.py DESCRIPTOR`): it needs none of them.

A program, not a module to import. Its one argument is a descriptor that holds the plan (holder.Plan, JSON).
"""

import os
import sys

if __name__ == "__main__":
    # .../alluxio_like/fuse/holder_main.py
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120
    from alluxio_like.fuse.holder import main

    sys.exit(main(int(sys.argv[1])))
