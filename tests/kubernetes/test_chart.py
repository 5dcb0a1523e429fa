"""The chart: what it renders is what Kubernetes takes, what its services take, and nothing that it should not say."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from alluxio_like.config import ClientConfig, FuseConfig, MasterConfig, WorkerConfig, load_config
from alluxio_like.ufs.options import describe_options, list_schemes
from tests.kubernetes.apirules import admits, find_refusals, find_unrestricted, list_clients
from tests.kubernetes.rendering import (
    CHART,
    VALUES,
    HelmError,
    find,
    find_faults,
    list_versions,
    parse,
    render,
    render_text,
    run_helm,
)
from tests.servers.stack import PROGRAMS

CASES = sorted(file.stem for file in VALUES.glob("*.yaml"))
EXAMPLES = CHART.parents[1] / "examples"
GOLDEN = Path(__file__).with_name("golden")


def values(case: str) -> Path:
    return VALUES / f"{case}.yaml"


def list_pods(objects: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Pod specifications of everything that makes pods, by name."""
    kinds = {"DaemonSet", "StatefulSet", "Job", "Deployment"}
    return [(one["metadata"]["name"], one["spec"]["template"]["spec"]) for one in objects if one["kind"] in kinds]


def list_containers(objects: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(pod's name, pod, container), init containers too."""
    return [
        (name, pod, container)
        for name, pod in list_pods(objects)
        for container in [*pod.get("initContainers", []), *pod["containers"]]
    ]


def test_there_are_four_versions_and_many_cases() -> None:
    assert len(list_versions()) == 4
    assert {"minimal", "full", "postgresql", "no-fuse", "many-disks"} <= set(CASES)


@pytest.mark.parametrize("case", ["", *CASES])
def test_lint(case: str) -> None:
    options = [f"--values={values(case)}"] if case else []
    said = run_helm("lint", "--strict", str(CHART), f"--kube-version={list_versions()[0]}", *options)
    assert "0 chart(s) failed" in said
    assert "[WARNING]" not in said


@pytest.mark.parametrize("version", list_versions())
@pytest.mark.parametrize("case", CASES)
def test_what_is_rendered_is_what_kubernetes_knows(case: str, version: str) -> None:
    objects = parse(render_text(values(case), version=version))
    assert len(objects) > 5
    assert [fault for one in objects for fault in find_faults(one, version)] == []
    names = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects]
    assert len(names) == len(set(names))


def test_the_schemas_find_faults() -> None:
    """Or the test above would mean nothing."""
    pod = find(render(values("minimal")), "DaemonSet", "-fuse")
    pod["spec"]["template"]["spec"]["containers"][0]["comand"] = []
    pod["spec"]["updateStrategy"]["rollingUpdate"] = {"maxSurge": True}
    faults = find_faults(pod, list_versions()[0])
    assert any("comand" in fault for fault in faults)
    assert any("maxSurge" in fault for fault in faults)


@pytest.mark.parametrize("case", CASES)
def test_what_is_rendered_is_not_refused_for_its_names(case: str) -> None:
    assert [wrong for one in render(values(case)) for wrong in find_refusals(one)] == []


def test_refusals_are_found() -> None:
    """Or the test above would mean nothing."""
    pod = find(render(values("minimal")), "DaemonSet", "-fuse")
    pod["metadata"]["labels"]["app.kubernetes.io/version"] = "1.0+x"
    spec = pod["spec"]["template"]["spec"]
    spec["volumes"].append({"name": "store.x", "secret": {"secretName": "store.x"}})
    spec["containers"][0]["volumeMounts"].append({"name": "store.x", "mountPath": "/tmp"})
    said = [
        "label app.kubernetes.io/version: 1.0+x",
        "volume store.x",
        "fuse: /tmp is there twice",
    ]
    assert find_refusals(pod) == [f"DaemonSet al-alluxio-like-fuse: {what}" for what in said]


@pytest.mark.parametrize("version", list_versions())
@pytest.mark.parametrize("example", sorted(file.stem for file in EXAMPLES.glob("*.yaml") if file.stem != "values"))
def test_examples_are_what_kubernetes_knows(example: str, version: str) -> None:
    objects = parse((EXAMPLES / f"{example}.yaml").read_text())
    assert [fault for one in objects for fault in find_faults(one, version)] == []


@pytest.mark.parametrize(("example", "is_restricted"), [("pvc", True), ("csi", True), ("sdk", True), ("hostpath", False)])
def test_examples_for_restricted_namespaces_are_allowed_there(example: str, is_restricted: bool) -> None:
    """By the Pod Security Standard "restricted"; hostPath is not."""
    jobs = [one for one in parse((EXAMPLES / f"{example}.yaml").read_text()) if one["kind"] == "Job"]
    violations = [said for _, pod in list_pods(jobs) for said in find_unrestricted(pod)]
    assert violations == ([] if is_restricted else ["volume alluxio", "training: runAsNonRoot", "training: seccompProfile"])


def test_examples_fit_the_chart() -> None:
    """As it is installed with the values beside them."""
    objects = render(EXAMPLES / "values.yaml")
    holder = find(objects, "DaemonSet", "-holder")["spec"]["template"]["spec"]
    (directory,) = [volume["hostPath"]["path"] for volume in holder["volumes"] if volume["name"] == "mounts"]
    config = tomllib.loads(
        find([one for one in objects if "config.toml" in one.get("data", {})], "ConfigMap")["data"]["config.toml"]
    )
    for file in EXAMPLES.glob("*.yaml"):
        if file.stem == "values":
            continue
        text = file.read_text()
        assert all(path == directory for path in re.findall(r"hostPath: {path: ([^,}]+)", text)), file
        assert all(
            address == config["client"]["master"] for address in re.findall(r"ALLUXIO_LIKE_MASTER, value: \"([^\"]+)", text)
        ), file


def test_network_policies_let_the_examples_in() -> None:
    """Pods of other namespaces are among them; without the label nobody is."""
    objects = render(EXAMPLES / "values.yaml", settings=["networkPolicy.enabled=true"])
    examples = [one for file in EXAMPLES.glob("*.yaml") if file.stem != "values" for one in parse(file.read_text())]
    clients = list_clients(examples)
    assert len(clients) == 2
    for component, port in (("master", "grpc"), ("worker", "grpc")):
        policy = find(objects, "NetworkPolicy", f"-{component}")
        assert all(admits(policy, "storage", client, port) for client in clients)
        for space in ("training", "storage"):
            assert not admits(policy, "storage", (space, {"app": "train"}), port)
        assert admits(policy, "storage", ("monitoring", {}), "http")
        fuse = find(objects, "DaemonSet", "-fuse")["spec"]["template"]["metadata"]["labels"]
        assert admits(policy, "storage", ("storage", fuse), port)
        assert not admits(policy, "storage", ("training", fuse), port)


def test_numbers_are_written_as_they_were(tmp_path: Path) -> None:
    """Helm reads all of them as fractions."""
    (config,) = [one["data"] for one in render(values("names")) if "config.toml" in one.get("data", {})]
    options = json.loads(config["mounts.json"])[0]["options"]
    assert (options["uid"], options["gid"]) == ("1000650000", "1000000")
    (tmp_path / "config.toml").write_text(config["config.toml"])
    assert "max_request_bytes = 67108864\n" in config["config.toml"]
    assert load_config(WorkerConfig, file=tmp_path / "config.toml").max_request_bytes == 64 << 20
    assert load_config(ClientConfig, file=tmp_path / "config.toml").io_timeout_s == 2.5


def test_jobs_go_by_themselves() -> None:
    """Helm does not take away what its hooks made. The pods of one that failed stay as long, so that their logs can be read."""
    jobs = [one for one in render(values("full")) if one["kind"] == "Job"]
    assert len(jobs) == 3
    for job in jobs:
        assert job["spec"]["ttlSecondsAfterFinished"] == 86400
        pod = job["spec"]["template"]["spec"]
        assert pod["restartPolicy"] == "Never"
        (rule,) = job["spec"]["podFailurePolicy"]["rules"]
        assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2])
        assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]


def hide_secrets(text: str) -> str:
    """Without what is another with each rendering: secrets that the chart makes, and their time."""
    hidden = re.sub(r"^(  (?:tls\.crt|tls\.key|ca\.crt|ca\.key|token): )\S+$", r"\1…", text, flags=re.M)
    return re.sub(r'(alluxio-like/renew-after: )"\d+"', r"\1…", hidden)


@pytest.mark.parametrize("case", ["minimal", "full"])
def test_golden(case: str) -> None:
    """To write them anew: ALLUXIO_LIKE_TEST_GOLDEN=write, and look at the difference."""
    text = hide_secrets(render_text(values(case), version="1.34"))
    file = GOLDEN / f"{case}.yaml"
    if os.environ.get("ALLUXIO_LIKE_TEST_GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["worker.disks[0].sze=1"], "additional properties 'sze' not allowed"),
        (["worker.port=70000"], "at '/worker/port': maximum"),
        (["worker.disks[0].path=/x", "worker.disks[0].size=big"], "at '/worker/disks/0/size': 'big' does not match"),
        (["mounts[0].path=data", "mounts[0].uri=s3://b"], "at '/mounts/0/path': 'data' does not match"),
        (["mounts[0].path=/data", "mounts[0].uri=ftp://x"], "at '/mounts/0/uri': 'ftp://x' does not match"),
        (["mounts[0].path=/data"], "at '/mounts/0': missing property 'uri'"),
        (["logLevel=loud"], "at '/logLevel': value must be one of 'debug', 'info'"),
        (["replicas=3"], "additional properties 'replicas' not allowed"),
        (["fuse.name=a/b"], "at '/fuse/name'"),
        (["master.maxUnavailable=2"], "at '/master/maxUnavailable': maximum"),
        (["config.workers.x=1"], "additional properties 'workers' not allowed"),
        (["master.metadata.url=postgresql://me:secret@db/x"], "master.metadata.passwordSecret"),
        (["master.storage.ephemeral=true"], "it needs master.metadata.url"),
        (["csi.enabled=true", "fuse.enabled=false"], "csi.enabled needs fuse.enabled"),
        (["csi.inlinePaths[0]=data"], "at '/csi/inlinePaths/0': 'data' does not match"),
        (["tls.enabled=true", "tls.certManager.duration=90d"], "at '/tls/certManager/duration': '90d' does not match"),
        (["config.worker.drain=1"], "at '/config/worker': additional properties 'drain' not allowed"),
        (["image.tag=1.0+x"], "at '/image/tag': '1.0+x' does not match"),
        (["image.repository=me/al:1.0"], "at '/image/repository': 'me/al:1.0' does not match"),
        (["image.digest=e3b0"], "at '/image/digest': 'e3b0' does not match"),
        (["worker.maxUnavailable=0"], "at '/worker/maxUnavailable': minimum: got 0, want 1"),
        (["worker.maxUnavailable=some"], "at '/worker/maxUnavailable': 'some' does not match"),
        (["metrics.serviceMonitor.interval=often"], "at '/metrics/serviceMonitor/interval': 'often' does not match"),
        (["preloads[0].name=a", "preloads[0].paths[0]=set"], "at '/preloads/0/paths/0': 'set' does not match"),
        (["fullnameOverride=a.b"], "a.b cannot be the name of a Service"),
        ([f"mounts[{n}].path=/a" for n in (0, 1)] + [f"mounts[{n}].uri=s3://b" for n in (0, 1)], "mounts: /a is there twice"),
        (["worker.disks[0].path=/a", "worker.disks[1].path=/a"], "worker.disks: /a is there twice"),
        (
            [f"fullnameOverride={'a' * 40}", f"preloads[0].name={'b' * 20}", "preloads[0].paths[0]=/x"],
            "69 characters of at most 63: shorten the name",
        ),
        (["worker.disks[0].path=/var/lib/alluxio-like/mnt/x"], "worker.disks[0].path (/var/lib/alluxio-like/mnt/x) is in fuse"),
        (["fuse.runPath=/var/lib/alluxio-like/worker/"], "(/var/lib/alluxio-like/worker/), or the same: each needs a directory"),
        (["metrics.port=19999"], "metrics.port and worker.port are both 19999"),
        (["metrics.port=19998"], "master.service.port and metrics.port are both 19998"),
        (["tls.certManager.issuerRef.kind=ClusterIssuer"], "tls.certManager.issuerRef has no name"),
        (["tls.secretName=a", "tls.certManager.issuerRef.name=b"], "name one of both"),
        (["master.metadata.url=postgresql://me@db/x?password=p"], "master.metadata.url holds a password"),
        (["config.master.metadata_url=postgresql://me:p@db/x"], "config.master.metadata_url holds a password"),
        (["stores.env[0].name=AWS_SECRET_ACCESS_KEY", "stores.env[0].value=x"], "AWS_SECRET_ACCESS_KEY would stand in the pods"),
        (["mounts[0].path=/a", "mounts[0].uri=s3://me:secret@b/x"], "mounts: the uri of /a holds a password"),
        (["tls.issuer=x"], "additional properties 'issuer' not allowed"),
        (["tls.clientNamespaces[0]=Team"], "at '/tls/clientNamespaces/0': 'Team' does not match"),
        (["tls.secretName=mine", "tls.clientNamespaces[0]=team"], "with tls.secretName the authority is yours"),
        (["tls.certManager.issuerRef.name=x", "tls.clientNamespaces[0]=team"], "use a ClusterIssuer"),
        (
            ["mounts[0].path=/data", "mounts[0].uri=s3://b", "mounts[0].options.secret_key=x"],
            "secret_key of /data is a secret and would stand in a ConfigMap",
        ),
    ],
)
def test_wrong_values_are_refused_with_what_is_wrong(settings: list[str], said: str) -> None:
    with pytest.raises(HelmError) as caught:
        render_text(settings=settings)
    assert said in str(caught.value)


def test_the_chart_knows_which_options_are_secrets() -> None:
    secret = {option.name for scheme in list_schemes() for option in describe_options(scheme) if option.secret}
    line = next(line for line in (CHART / "templates/validate.yaml").read_text().splitlines() if "$secret := list" in line)
    assert set(re.findall(r'"(\w+)"', line)) == secret


@pytest.mark.parametrize("case", CASES)
def test_the_services_take_the_configuration(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ALLUXIO_LIKE_")]:
        monkeypatch.delenv(name)
    objects = render(values(case))
    config = next(one for one in objects if one["kind"] == "ConfigMap" and "config.toml" in one["data"])
    file = tmp_path / "config.toml"
    file.write_text(config["data"]["config.toml"])
    master = load_config(MasterConfig, file=file)
    worker = load_config(WorkerConfig, file=file)
    fuse = load_config(FuseConfig, file=file)
    client = load_config(ClientConfig, file=file)
    service = find(objects, "Service", "-master")
    address = f"{service['metadata']['name']}.storage.svc:{service['spec']['ports'][0]['port']}"
    assert worker.master == fuse.client.master == client.master == address
    assert master.bind == f"0.0.0.0:{service['spec']['ports'][0]['port']}"
    assert master.http_bind == worker.http_bind == fuse.http_bind == "0.0.0.0:20000"
    # Without TLS, in the clear; never TLS in name only.
    assert master.insecure == (master.tls.certificate is None)
    # Pods are called at addresses that no certificate names.
    assert bool(worker.tls.server_name) == (worker.tls.certificate is not None)
    assert worker.tls == master.tls == client.tls == fuse.client.tls
    if case == "full":
        assert (worker.fetch_concurrency, fuse.processes) == (32, 4)
        assert str(fuse.mountpoint) == "/mnt/alluxio/tree"
        assert worker.door_users == ("1000", "@1000")
    assert tomllib.loads(config["data"]["config.toml"])


def test_every_command_line_is_one_that_works() -> None:
    """Their options exist: one that is not known ends a command with 2 before it does anything."""
    commands = {
        (*container["command"], *container.get("args", []))
        for case in CASES
        for _, _, container in list_containers(render(values(case)))
        if container["name"] not in {"prepare", "registrar"}
    }
    assert {command[:2] for command in commands} >= {
        ("alluxio-like", name) for name in ("master", "worker", "fuse", "holder", "csi", "mount")
    }
    for command in commands:
        assert command[0] in {"alluxio-like", "cache"}
        done = subprocess.run([PROGRAMS / command[0], *command[1:], "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
        options = [word.split("=")[0] for word in command if word.startswith("--")]
        assert all(re.search(rf"{option}\b", done.stdout) for option in options), command


@pytest.mark.parametrize("case", CASES)
def test_ports_volumes_and_selectors_fit_together(case: str) -> None:
    objects = render(values(case))
    for name, pod, container in list_containers(objects):
        volumes = {volume["name"] for volume in pod["volumes"]}
        if container["name"] == "master":
            claims = find(objects, "StatefulSet")["spec"].get("volumeClaimTemplates", [])
            volumes |= {claim["metadata"]["name"] for claim in claims}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, name
        places = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert len(places) == len(set(places))
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            wanted = container.get(probe, {}).get("httpGet", {}).get("port")
            assert wanted is None or wanted in ports
    for one in objects:
        if one["kind"] in {"DaemonSet", "StatefulSet"}:
            labels = one["spec"]["template"]["metadata"]["labels"].items()
            assert one["spec"]["selector"]["matchLabels"].items() <= labels
    used = {mount["name"] for _, _, container in list_containers(objects) for mount in container["volumeMounts"]}
    made = {volume["name"] for _, pod in list_pods(objects) for volume in pod["volumes"]}
    assert made <= used


@pytest.mark.parametrize("case", CASES)
def test_privileges_are_what_is_needed(case: str) -> None:
    """Each pod's, in one place: whoever changes them changes this."""
    objects = render(values(case))
    for name, pod, container in list_containers(objects):
        security, user = container["securityContext"], pod.get("securityContext", {})
        added = security.get("capabilities", {}).get("add", [])
        if container["name"] == "holder":
            assert (security["privileged"], pod["hostPID"]) == (True, True)
            continue
        if container["name"] == "csi":
            assert (security["privileged"], pod.get("hostPID"), security["readOnlyRootFilesystem"]) == (True, None, True)
            # The kubelet alone calls it, and it calls nobody: it has no credentials.
            assert {mount["name"] for mount in container["volumeMounts"]} == {"tmp", "plugin", "pods", "mounts"}
            continue
        assert not security.get("privileged"), name
        assert security["capabilities"]["drop"] == ["ALL"], name
        if container["name"] == "fuse":
            assert set(added) - {"SYS_PTRACE"} == {"SYS_ADMIN", "DAC_OVERRIDE"}
            assert ("SYS_PTRACE" in added) == (case != "full")
        elif container["name"] == "registrar":
            assert (added, security["runAsUser"], security["allowPrivilegeEscalation"]) == ([], 0, False)
        elif container["name"] == "prepare":
            assert (set(added), security["runAsUser"]) == ({"CHOWN", "FOWNER", "DAC_OVERRIDE"}, 0)
        else:
            assert not added, name
            assert user["runAsUser"] == 10001
            assert security["runAsNonRoot"]
            assert not security["allowPrivilegeEscalation"]
            assert not pod.get("hostPID")
        assert security["readOnlyRootFilesystem"], name
        assert user["seccompProfile"] == {"type": "RuntimeDefault"}, name
    for name, pod in list_pods(objects):
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name


@pytest.mark.parametrize("case", CASES)
def test_only_the_holder_and_the_csi_plugin_mount_for_others(case: str) -> None:
    for name, _, container in list_containers(render(values(case))):
        modes = {mount.get("mountPropagation", "None") for mount in container["volumeMounts"]}
        assert ("Bidirectional" in modes) == (container["name"] in {"holder", "csi"}), name


def test_the_mount_outlives_what_serves_it() -> None:
    objects = render(values("minimal"))
    assert find(objects, "DaemonSet", "-holder")["spec"]["updateStrategy"] == {"type": "OnDelete"}
    fuse = find(objects, "DaemonSet", "-fuse")["spec"]
    assert fuse["updateStrategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    # Two pods of it are on a node at once: nothing of the node's network may be theirs.
    pod = fuse["template"]["spec"]
    assert not pod.get("hostNetwork")
    assert not any("hostPort" in port for port in pod["containers"][0]["ports"])


def test_a_holder_stays_when_the_configuration_changes() -> None:
    """Everything else is started anew."""
    one, other = (render(values("minimal"), settings=[f"logLevel={level}"]) for level in ("info", "debug"))

    def get_template(objects: list[dict[str, Any]], kind: str, name: str) -> Any:
        return find(objects, kind, name)["spec"]["template"]

    assert get_template(one, "DaemonSet", "-holder") == get_template(other, "DaemonSet", "-holder")
    for kind, name in (("DaemonSet", "-fuse"), ("DaemonSet", "-worker"), ("StatefulSet", "-master")):
        assert get_template(one, kind, name) != get_template(other, kind, name)


def test_a_worker_has_time_to_drain() -> None:
    objects = render(values("minimal"), settings=["worker.drainSeconds=100"])
    config = tomllib.loads(
        find([one for one in objects if "config.toml" in one.get("data", {})], "ConfigMap")["data"]["config.toml"]
    )
    assert config["worker"]["drain_s"] == 100
    assert config["worker"]["cap_unpersisted"] is True
    assert find(objects, "DaemonSet", "-worker")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 130


def test_secrets_are_nowhere_but_in_secrets() -> None:
    objects = render(values("full"), settings=["token.existingSecret="])
    token = find(objects, "Secret", "-token")["data"]
    assert list(token) == ["value"]
    text = yaml.safe_dump_all([one for one in objects if one["kind"] != "Secret"])
    assert token["value"] not in text
    mounts = json.loads(
        find([one for one in objects if "mounts.json" in one.get("data", {})], "ConfigMap")["data"]["mounts.json"]
    )
    assert mounts[0]["options"]["secret_key"] == "file:/var/run/secrets/alluxio-like/stores/s3-credentials/secret"
    readers = {
        name
        for name, pod, container in list_containers(objects)
        for mount in container["volumeMounts"]
        if mount["mountPath"] == "/var/run/secrets/alluxio-like/stores/s3-credentials"
    }
    assert readers == {"al-alluxio-like-master", "al-alluxio-like-worker"}


def test_a_token_is_made_where_none_is_named() -> None:
    one, other = (find(render(), "Secret", "-token")["data"]["token"] for _ in range(2))
    assert len(one) >= 48
    assert one != other


def list_expressions() -> list[str]:
    rules = yaml.safe_load((CHART / "files/rules.yaml").read_text())
    dashboard = json.loads((CHART / "files/dashboard.json").read_text())
    found = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    return found + [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("expression", list_expressions())
def test_alerts_and_dashboard_ask_for_metrics_and_labels_that_are(expression: str) -> None:
    document = (CHART.parents[2] / "docs/operations.md").read_text()
    known = {
        name: set(filter(None, labels.split(", ")))
        for name, labels in re.findall(r"^\| `(alluxio_like_\w+)` \| ([\w, ]*) \|", document, re.M)
    }
    given = {"node", "component", "le", "state"}
    asked = {name.removesuffix("_bucket") for name in re.findall(r"\balluxio_like_\w+", expression)}
    assert asked
    assert asked - set(known) == set()
    labels = set().union(*(known[name] for name in asked)) | given
    by = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
    assert by - labels == set()


def test_alerts_say_what_to_do() -> None:
    rules = yaml.safe_load((CHART / "files/rules.yaml").read_text())["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    assert all(rule["annotations"]["summary"] and rule["annotations"]["description"] for rule in rules)
