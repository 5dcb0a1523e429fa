"""Certificates for tests, made by openssl as a user would."""

import subprocess
from pathlib import Path

from alluxio_like.config import TlsConfig

LOOPBACK = "IP:127.0.0.1,DNS:localhost"


class Authority:
    """A certificate authority whose files are below `place`, by its name."""

    def __init__(self, place: Path, name: str = "ca") -> None:
        self.place = place
        self.name = name
        self.ca = place / f"{name}.pem"
        self._run(f"req -x509 {_KEY} -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem")

    def issue(self, name: str, *, names: str = LOOPBACK, days: int = 2) -> TlsConfig:
        """NAME.pem and NAME.key, replaced if they are there; `days` below 0: expired."""
        (self.place / f"{name}.cnf").write_text(f"subjectAltName={names}\n")
        self._run(f"req {_KEY} -subj /CN={name} -keyout {name}.key.new -out {name}.csr")
        self._run(
            f"x509 -req -days {days} -in {name}.csr -CA {self.name}.pem -CAkey {self.name}.key -CAcreateserial "
            f"-extfile {name}.cnf -out {name}.pem.new"
        )
        for kind in ("key", "pem"):
            (self.place / f"{name}.{kind}.new").replace(self.place / f"{name}.{kind}")
        return TlsConfig(certificate=self.place / f"{name}.pem", key=self.place / f"{name}.key", ca=self.ca)

    def _run(self, words: str) -> None:
        subprocess.run(["openssl", *words.split()], cwd=self.place, check=True, capture_output=True)


_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
