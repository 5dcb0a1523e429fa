"""What Helm asks an API server for when a chart looks something up: the Secrets that are there.

Owns a server on loopback that knows objects of the core API by namespace and name, and nothing else; what is in it is the test's.
"""

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

Object = dict[str, Any]
_RESOURCES = {"kind": "APIResourceList", "groupVersion": "v1"} | {
    "resources": [{"name": "secrets", "singularName": "secret", "namespaced": True, "kind": "Secret", "verbs": ["get", "list"]}]
}


class ApiServer:
    """Secrets by (namespace, name). `url` is what Helm is told."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.secrets: dict[tuple[str, str], Object] = {}

    def apply(self, objects: Sequence[Object], namespace: str) -> None:
        """Bring it to the Secrets of a rendered chart, as `helm upgrade` does."""
        found = [one for one in objects if one["kind"] == "Secret"]
        self.secrets = {(one["metadata"].get("namespace", namespace), one["metadata"]["name"]): one for one in found}

    def answer(self, path: str) -> Object | None:
        """What is there; None: nothing."""
        match path.strip("/").split("/"):
            case ["version"]:
                return {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
            case ["api"]:
                return {"kind": "APIVersions", "versions": ["v1"]}
            case ["apis"]:
                return {"kind": "APIGroupList", "apiVersion": "v1", "groups": []}
            case ["api", "v1"]:
                return _RESOURCES
            case ["api", "v1", "namespaces", namespace, "secrets", name]:
                return self.secrets.get((namespace, name))
        return None


@contextlib.contextmanager
def start_apiserver() -> Iterator[ApiServer]:
    """A server for as long as the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        known: ClassVar[ApiServer]

        def do_GET(self) -> None:
            found = self.known.answer(self.path.partition("?")[0])
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            body = json.dumps(found or missing).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Handler.known = ApiServer(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, name="apiserver", daemon=True)
        thread.start()
        try:
            yield Handler.known
        finally:
            server.shutdown()
            thread.join()
