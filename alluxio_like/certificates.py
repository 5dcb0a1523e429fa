"""Files that others replace while we run: certificates, keys and tokens, read again when they have changed.

Owns when such files are looked at, what makes a set of PEM files usable, and until when a certificate holds. cert-manager, the
kubelet and people replace them one by one or all at once; what cannot be used, as one of them is half written, is not taken up,
and what was read before holds. Knows nothing of gRPC or HTTP: whoever serves or calls asks for the present value with each
connection. Small local reads; safe from any thread, without locks: the state is one tuple, replaced as a whole.
"""

import logging
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from alluxio_like.errors import AlluxioLikeError, ConfigError

_LOG = logging.getLogger(__name__)

T = TypeVar("T")
_Stamps = tuple[tuple[int, ...], ...]

LOOK_S = 1.0
"""How often files are looked at while somebody asks."""
_TRIES = 3


class Renewed(Generic[T]):
    """A value that `read` makes of files. Raises what `read` raises when it is made, and never after that."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], T], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._monotonic = monotonic
        stamps, value = self._read_whole()
        self._known: tuple[float, _Stamps, T] = (monotonic() + LOOK_S, stamps, value)

    def get(self) -> T:
        """The newest that could be read: the same object as before where nothing has changed."""
        until_s, stamps, value = self._known
        now_s = self._monotonic()
        if now_s < until_s:
            return value
        newer = _get_stamps(self._paths)
        if newer != stamps:
            try:
                newer, value = self._read_whole()
                _LOG.info("took up what has changed in %s", self._name())
            except AlluxioLikeError as error:
                # Said once for each change.
                _LOG.warning("what was read from %s before stays in use: %s", self._name(), error)
        self._known = (now_s + LOOK_S, newer, value)
        return value

    def _name(self) -> str:
        return ", ".join(map(str, self._paths))

    def _read_whole(self) -> tuple[_Stamps, T]:
        """All files as they are at one moment."""
        for _ in range(_TRIES):
            before = _get_stamps(self._paths)
            value = self._read()
            if _get_stamps(self._paths) == before:
                return before, value
        raise ConfigError(f"{self._name()} change faster than they can be read")


def _get_stamps(paths: Sequence[Path]) -> _Stamps:
    stamps: list[tuple[int, ...]] = []
    for path in paths:
        try:
            found = path.stat()
            stamps.append((found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size))
        except OSError:
            stamps.append(())
    return tuple(stamps)


@dataclass(frozen=True, slots=True)
class Pem:
    """The contents of PEM files that fit each other; None where there is none."""

    certificate: bytes | None
    key: bytes | None
    ca: bytes | None


class PemFiles:
    """A certificate with its key, an authority's certificates, or both. `get` gives what they are now.

    Raises ConfigError, when it is made, for files that cannot be used: unreadable, no PEM, a key of another certificate or one
    with a password.
    """

    def __init__(self, certificate: Path | None, key: Path | None, ca: Path | None) -> None:
        if (certificate is None) != (key is None):
            raise ConfigError("a certificate is of use only with its key: give both tls.certificate and tls.key", subject="tls")
        self.certificate = certificate
        self.key = key
        self.ca = ca
        self._renewed = Renewed([path for path in (certificate, key, ca) if path is not None], self._read)

    def get(self) -> Pem:
        """As Renewed.get."""
        return self._renewed.get()

    def load(self, context: ssl.SSLContext) -> None:
        """Make a context of the standard library's ssl use the files as they are. Raises ConfigError."""
        if self.certificate is not None:
            try:
                # An empty password: else a key that has one would ask for it on the terminal.
                context.load_cert_chain(self.certificate, self.key, password="")
            except ssl.SSLError as error:
                if error.reason == "KEY_VALUES_MISMATCH":
                    said = f"{self.key} is not the key of the certificate {self.certificate}"
                else:
                    said = f"{self.certificate} is no PEM certificate, or {self.key} no PEM key without a password"
                raise ConfigError(said, subject=str(self.certificate)) from None
        if self.ca is not None:
            try:
                context.load_verify_locations(self.ca)
            except ssl.SSLError:
                raise ConfigError(f"the CA file {self.ca} holds no PEM certificate", subject=str(self.ca)) from None

    def _read(self) -> Pem:
        try:
            pem = Pem(*(path.read_bytes() if path is not None else None for path in (self.certificate, self.key, self.ca)))
            self.load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        except OSError as error:
            name = error.filename or self.certificate or self.ca
            raise ConfigError(f"cannot read {name}: {error.strerror or error}", subject=str(name)) from None
        return pem


def read_validity(path: Path) -> tuple[float, float]:
    """From when and until when the first certificate of a PEM file holds, in seconds since the epoch.

    Raises OSError, and ValueError for a file that has none.
    """
    path.read_bytes()
    try:
        # The interpreter's own tests use it, and the standard library has nothing else that reads a certificate from a file.
        decoded: dict[str, Any] = ssl._ssl._test_decode_cert(str(path))  # type: ignore[attr-defined]
        return ssl.cert_time_to_seconds(decoded["notBefore"]), ssl.cert_time_to_seconds(decoded["notAfter"])
    except (ssl.SSLError, KeyError) as error:
        raise ValueError(str(error)) from None
