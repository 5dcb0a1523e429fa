"""The worker's process: builds its parts from the configuration, wires them, and takes them down again.

Owns the order of start and stop, the home directory's lock, and signals. Decides nothing. One event loop, one process.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from alluxio_like import errors
from alluxio_like.cache.store import CacheDirSpec, CacheStore
from alluxio_like.clock import Clock, SystemClock
from alluxio_like.config import WorkerConfig, write_ready_file
from alluxio_like.metrics import Health, Metrics, is_loopback, split_address, start_http
