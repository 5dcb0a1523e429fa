"""Renders the chart, and holds what comes out against Kubernetes' schemas. Blocks; starts helm."""

import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator
from referencing import Registry, Resource

from tests.servers.tools import HELM, get_schemas

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/alluxio-like"
VALUES = Path(__file__).with_name("values")
CRDS = frozenset({"monitoring.coreos.com/v1", "cert-manager.io/v1"})
"""Of other projects, whose schemas Kubernetes has not."""


class HelmError(RuntimeError):
    """What helm said."""


def list_versions() -> list[str]:
    """The last four releases of Kubernetes whose schemas are there, the oldest first: 1.34, …"""
    found = {name.name.removesuffix("-local-strict").removeprefix("v") for name in get_schemas().glob("v*-local-strict")}
    return sorted((version.removesuffix(".0") for version in found), key=lambda text: int(text.split(".")[1]))[-4:]


def run_helm(*arguments: str) -> str:
    """Raises HelmError."""
    environment = {
        **os.environ,
        "HELM_CACHE_HOME": "/nonexistent",
        "HELM_CONFIG_HOME": "/nonexistent",
        "HELM_DATA_HOME": "/nonexistent",
    }
    done = subprocess.run([HELM.install(), *arguments], capture_output=True, text=True, check=False, env=environment, timeout=60)
    if done.returncode:
        raise HelmError(done.stderr + done.stdout)
    return done.stdout


def render_text(
    *values: Path,
    settings: Sequence[str] = (),
    name: str = "al",
    namespace: str = "storage",
    version: str = "",
    cluster: str = "",
) -> str:
    """`helm template` with files of values and --set's. `cluster`: the URL of an API server that lookups ask."""
    options = [f"--values={file}" for file in values] + [f"--set={setting}" for setting in settings]
    options += ["--dry-run=server", f"--kube-apiserver={cluster}"] if cluster else []
    version = version or list_versions()[-1]
    return run_helm("template", name, str(CHART), f"--namespace={namespace}", f"--kube-version={version}", *options)


def render_notes(*values: Path, settings: Sequence[str] = (), namespace: str = "storage") -> str:
    """What `helm install al` says at its end."""
    options = [f"--values={file}" for file in values] + [f"--set={setting}" for setting in settings]
    with tempfile.TemporaryDirectory() as made:
        # `helm template` leaves the notes out, and `helm install` wants a cluster: so in a copy they are an object as all others.
        chart = shutil.copytree(CHART, Path(made, "chart"))
        (chart / "templates/NOTES.txt").rename(chart / "notes")
        (chart / "templates/notes.yaml").write_text('said:\n  {{- tpl (.Files.Get "notes") . | toYaml | nindent 2 }}\n')
        common = [f"--namespace={namespace}", f"--kube-version={list_versions()[-1]}", "--show-only=templates/notes.yaml"]
        return str(yaml.safe_load(run_helm("template", "al", str(chart), *common, *options))["said"])


def parse(text: str) -> list[dict[str, Any]]:
    """The objects of a YAML stream."""
    return [found for found in yaml.safe_load_all(text) if found]


def render(
    *values: Path, settings: Sequence[str] = (), name: str = "al", namespace: str = "storage", cluster: str = ""
) -> list[dict[str, Any]]:
    """The rendered objects."""
    return parse(render_text(*values, settings=settings, name=name, namespace=namespace, cluster=cluster))


@functools.cache
def _load(version: str, name: str) -> Draft7Validator | None:
    directory = get_schemas() / f"v{version}.0-local-strict"
    file = directory / f"{name}.json"
    if not file.exists():
        return None
    definitions = Resource.from_contents(
        json.loads((directory / "_definitions.json").read_text()), default_specification=_SPECIFICATION
    )
    registry: Registry[Any] = Registry().with_resource("_definitions.json", definitions)
    return Draft7Validator(json.loads(file.read_text()), registry=registry)


from referencing.jsonschema import DRAFT7 as _SPECIFICATION  # noqa: E402


def find_faults(found: dict[str, Any], version: str) -> list[str]:
    """What is wrong with an object by the schemas of a release of Kubernetes, unknown fields included."""
    api, kind = found["apiVersion"], found["kind"]
    if api in CRDS:
        return []
    group, _, release = api.rpartition("/")
    parts = [kind.lower(), *([group.split(".")[0]] if group else []), release]
    validator = _load(version, "-".join(parts))
    if validator is None:
        return [f"Kubernetes {version} has no {kind} in {api}"]
    where = f"{kind} {found['metadata']['name']}"
    return [f"{where}: {'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(found)]


def find(objects: Sequence[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The object of a kind, by the end of its name. Raises LookupError."""
    for one in objects:
        if one["kind"] == kind and one["metadata"]["name"].endswith(name):
            return one
    raise LookupError(f"no {kind} {name}")
