"""What somebody new is told fits what there is: the first commands, the chart's notes, the versions in examples."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.rendering import CHART, ROOT, VALUES, find, parse, render, render_notes, run_helm

EXAMPLES = ROOT / "deploy/examples"
IN_README = (ROOT / "README.md", "## On Kubernetes")
IN_DOCUMENT = (ROOT / "docs/kubernetes.md", "## Install")


def read_commands(file: Path, heading: str) -> list[list[str]]:
    """The indented lines below a heading, as a shell would read them."""
    (section,) = re.findall(rf"^{heading}\n(.*?)^## ", file.read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.split(line, comments=True) for line in re.findall(r"^    (\S.*)$", section, re.MULTILINE)]


def find_command(commands: list[list[str]], *begin: str) -> list[str]:
    """The one command with these words in this order at its beginning, options with `-n NAMESPACE` aside."""
    found = [words for words in commands if [words[0], *(words[3:] if words[1] == "-n" else words[1:])][: len(begin)] == [*begin]]
    (words,) = found
    return words


@pytest.mark.parametrize(("file", "heading"), [IN_README, IN_DOCUMENT])
def test_the_first_commands_fit_the_chart(file: Path, heading: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Helm's own is run; what the others name is what it makes, or asks for."""
    commands = read_commands(file, heading)
    assert len(commands) <= 10
    monkeypatch.chdir(ROOT)
    install = find_command(commands, "helm", "install")
    objects = parse(run_helm("template", *install[2:], "--kube-version=1.34"))
    namespace = install[install.index("-n") + 1]
    made = {name for words in commands for name in re.findall(r"create namespace (\S+)", " ".join(words))}
    assert {one["metadata"]["namespace"] for one in objects if "namespace" in one["metadata"]} | {namespace} <= made
    values = yaml.safe_load(Path(install[install.index("-f") + 1]).read_text())
    create = find_command(commands, "kubectl", "create", "secret", "generic")
    keys = {match[1] for word in create if (match := re.match(r"--from-(?:literal|file)=(\w+)=", word))}
    references = [reference for mount in values["mounts"] for reference in mount["secretOptions"].values()]
    assert {(reference["secret"], reference["key"]) for reference in references} == {(create[6], key) for key in keys}
    assert create[1:3] == ["-n", namespace]
    labels = dict(word.split("=") for word in find_command(commands, "kubectl", "label", "node") if "=" in word)
    daemons = [one for one in objects if one["kind"] == "DaemonSet"]
    assert all(one["spec"]["template"]["spec"]["nodeSelector"] == labels for one in daemons)
    rollout = find_command(commands, "kubectl", "rollout", "status")
    assert rollout[1:3] == ["-n", namespace]
    assert rollout[-1] in {f"daemonset/{one['metadata']['name']}" for one in daemons}
    image = find(objects, "DaemonSet", "-fuse")["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == f"registry.example/alluxio-like:{read_version()}"


def test_the_training_pod_of_the_readme_is_one_of_the_examples() -> None:
    commands = read_commands(*IN_README)
    (job,) = parse((ROOT / find_command(commands, "kubectl", "apply", "-f")[3]).read_text())
    logs = find_command(commands, "kubectl", "logs")
    assert logs[1:3] == ["-n", job["metadata"]["namespace"]]
    assert logs[-1] == f"job/{job['metadata']['name']}"
    label = find_command(commands, "kubectl", "label", "namespace")
    assert label[3:] == ["storage", "pod-security.kubernetes.io/enforce=privileged"]


def read_version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def test_chart_and_examples_are_of_this_release() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (read_version(), read_version())
    used = {image for file in EXAMPLES.glob("*.yaml") for image in re.findall(r"image: (\S*alluxio-like\S*)", file.read_text())}
    assert used == {f"alluxio-like:{read_version()}"}


@pytest.mark.parametrize("case", sorted(file.stem for file in VALUES.glob("*.yaml")))
def test_the_notes_name_what_is_there(case: str) -> None:
    said = render_notes(VALUES / f"{case}.yaml")
    objects: list[dict[str, Any]] = render(VALUES / f"{case}.yaml")
    made = {one["metadata"]["name"] for one in objects}
    named = re.findall(r"daemonset/(\S+)|exec (\S+)-0 |the Secret (\S+),", said)
    assert len(named) >= 1
    assert {name for group in named for name in group if name} <= made
    kinds = {one["metadata"]["name"].rpartition("-")[2] for one in objects if one["kind"] == "DaemonSet"}
    assert ("a worker" in said, "the mount /" in said) == ("worker" in kinds, "fuse" in kinds)
    assert re.findall(r"of the driver (\S+):", said) == [one["metadata"]["name"] for one in objects if one["kind"] == "CSIDriver"]
    assert "kubectl label node NODE alluxio-like/node=true\n" in said


def test_the_notes_where_all_nodes_are_meant() -> None:
    said = render_notes(settings=["nodeSelector.alluxio-like/node=null"])
    assert "All nodes get a worker and the mount /var/lib/alluxio-like/mnt/data:\n\n  kubectl -n storage rollout" in said
    assert "label node" not in said
