"""What an API server asks of objects beyond what the schemas say, and whom a NetworkPolicy lets in. Pure.

Owns the rules that a chart can break by the values that it is given: names of volumes, containers, ports, Services and Jobs,
values of labels, one thing for each mount path and name. Nothing starts here. Called by the tests of the chart.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SERVICE = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_PORT = re.compile(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_WITH_SHORT_NAMES = {"Service": _SERVICE, "Job": _LABEL, "StatefulSet": _LABEL, "DaemonSet": _LABEL}
Object = Mapping[str, Any]


def find_refusals(one: Object) -> list[str]:
    """What an API server would refuse in an object that the schemas allow."""
    return [f"{one['kind']} {one['metadata']['name']}: {wrong}" for wrong in _find(one)]


def _find(one: Object) -> Iterator[str]:
    metadata = one["metadata"]
    if not _WITH_SHORT_NAMES.get(one["kind"], _SUBDOMAIN).fullmatch(metadata["name"]):
        yield "its name"
    template = one.get("spec", {}).get("template", {}) if isinstance(one.get("spec"), Mapping) else {}
    for labels in (metadata.get("labels", {}), template.get("metadata", {}).get("labels", {})):
        yield from (f"label {name}: {value}" for name, value in labels.items() if not _LABEL_VALUE.fullmatch(value))
    if "spec" in template:
        yield from _find_in_pod(template["spec"])


def _find_in_pod(pod: Object) -> Iterator[str]:
    names = {"volume": [volume["name"] for volume in pod.get("volumes", [])]}
    containers = [*pod.get("initContainers", []), *pod["containers"]]
    names["container"] = [container["name"] for container in containers]
    for kind, found in names.items():
        yield from (f"{kind} {name}" for name in found if not _LABEL.fullmatch(name))
        yield from (f"{kind} {name} is there twice" for name in set(found) if found.count(name) > 1)
    for container in containers:
        where = container["name"]
        paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        yield from (f"{where}: {path} is there twice" for path in set(paths) if paths.count(path) > 1)
        yield from (f"{where}: path {path}" for path in paths if ":" in path or ".." in path.split("/"))
        ports = container.get("ports", [])
        yield from (f"{where}: port {port['name']}" for port in ports if not _PORT.fullmatch(port["name"]))
        numbers = [port["containerPort"] for port in ports]
        yield from (f"{where}: port {number} is there twice" for number in set(numbers) if numbers.count(number) > 1)


def find_unrestricted(pod: Object) -> list[str]:
    """What the Pod Security Standard "restricted" does not allow, of what our pods may have."""
    kinds = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    found = [f"volume {volume['name']}" for volume in pod.get("volumes", []) if not kinds & set(volume)]
    found += [name for name in ("hostPID", "hostIPC", "hostNetwork") if pod.get(name)]
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        security = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
        rules = {
            "privileged": not security.get("privileged"),
            "allowPrivilegeEscalation": security.get("allowPrivilegeEscalation") is False,
            "capabilities": security.get("capabilities", {}).get("drop") == ["ALL"]
            and set(security["capabilities"].get("add", [])) <= {"NET_BIND_SERVICE"},
            "runAsNonRoot": security.get("runAsNonRoot") is True and security.get("runAsUser") != 0,
            "seccompProfile": security.get("seccompProfile", {}).get("type") in {"RuntimeDefault", "Localhost"},
        }
        found += [f"{container['name']}: {rule}" for rule, is_kept in rules.items() if not is_kept]
    return found


def admits(policy: Object, namespace: str, source: tuple[str, Mapping[str, str]], port: str) -> bool:
    """Whether a NetworkPolicy of a namespace lets a pod (its namespace, its labels) in at a port of this name."""
    return any(
        any(one["port"] == port for one in rule["ports"]) and any(_is_meant(peer, namespace, source) for peer in rule["from"])
        for rule in policy["spec"]["ingress"]
    )


def _is_meant(peer: Object, namespace: str, source: tuple[str, Mapping[str, str]]) -> bool:
    """A peer without a namespaceSelector is of the policy's own namespace, and of no other."""
    its_namespace, labels = source
    spaces = peer.get("namespaceSelector")
    known = {"kubernetes.io/metadata.name": its_namespace}
    is_space = its_namespace == namespace if spaces is None else _fits(spaces, known)
    return is_space and _fits(peer.get("podSelector", {}), labels)


def _fits(selector: Object, labels: Mapping[str, str]) -> bool:
    unknown = set(selector) - {"matchLabels"}
    if unknown:
        raise ValueError(f"a selector by {unknown}")
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def list_clients(objects: Sequence[Object]) -> list[tuple[str, Mapping[str, str]]]:
    """Pods that call master and workers themselves: their namespaces and labels."""
    templates = [(one["metadata"].get("namespace", ""), one["spec"]["template"]) for one in objects if one["kind"] == "Job"]
    return [
        (namespace, template["metadata"]["labels"])
        for namespace, template in templates
        if "ALLUXIO_LIKE_MASTER" in str(template["spec"])
    ]
