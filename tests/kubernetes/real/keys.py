"""Certificates and keys of a real Kubernetes' own parts. Blocks; starts openssl."""

import subprocess
from pathlib import Path

import yaml

_NAMES = "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:10.96.0.1"


class Keys:
    """An authority, a certificate of the API server, one of an administrator, who all parts are, and the key of accounts."""

    def __init__(self, place: Path, address: str) -> None:
        self.place = place
        place.mkdir()
        self._run(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.crt"
        )
        self._issue("apiserver", "/CN=apiserver", f"{_NAMES},IP:{address}")
        self._issue("admin", "/O=system:masters/CN=admin", "DNS:admin")
        self._run("genrsa -out accounts.key 2048")
        self._run("rsa -in accounts.key -pubout -out accounts.pub")

    def write_kubeconfig(self, server: str) -> Path:
        """For whoever is an administrator."""
        file = self.place / "kubeconfig"
        cluster = {"server": server, "certificate-authority": f"{self.place}/ca.crt"}
        user = {"client-certificate": f"{self.place}/admin.crt", "client-key": f"{self.place}/admin.key"}
        context = {"cluster": "here", "user": "admin"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": "admin", "user": user}],
            "contexts": [{"name": "here", "context": context}],
            "current-context": "here",
        }
        file.write_text(yaml.safe_dump(config))
        return file

    def _issue(self, name: str, subject: str, names: str) -> None:
        (self.place / f"{name}.cnf").write_text(f"subjectAltName={names}\n")
        self._run(
            f"req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj {subject} -keyout {name}.key -out {name}.csr"
        )
        self._run(
            f"x509 -req -days 2 -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile {name}.cnf -out {name}.crt"
        )

    def _run(self, words: str) -> None:
        subprocess.run(["openssl", *words.split()], cwd=self.place, check=True, capture_output=True)
