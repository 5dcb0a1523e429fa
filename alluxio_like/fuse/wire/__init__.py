"""The kernel's FUSE protocol: what is read from /dev/fuse and written to it, as bytes and as tuples.

One name for all of it: `wire.parse` and the requests, the `pack_...` of answers and notifications, the structs and the constants
without FUSE_ in front. No input or output; imports the standard library and the errors only.
"""

from alluxio_like.fuse.wire.layouts import *  # noqa: F403
from alluxio_like.fuse.wire.replies import *  # noqa: F403
from alluxio_like.fuse.wire.requests import *  # noqa: F403
