"""The tables of docs/operations.md and docs/stores.md that repeat what the code says: settings, metrics, options of stores.

    python -m tests.docs_tables      write them anew

Each stands between `<!-- BEGIN name -->` and `<!-- END name -->`; tests/unit/test_docs.py fails when one differs from the code.
Also the names of settings in the schema of the chart's values, by which Helm refuses those that no service knows.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from alluxio_like import config
from alluxio_like.metrics import NAMESPACE, Metrics, RequestTimes
from alluxio_like.ufs.open import describe_options
from alluxio_like.ufs.options import list_schemes

DOCUMENTS = Path(__file__).parents[1] / "docs"
SCHEMA = Path(__file__).parents[1] / "deploy/helm/alluxio-like/values.schema.json"


def _show_default(name: str, field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "*needed*"
    if isinstance(value, BaseModel) or value in (None, "", ()):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if name.endswith("_bytes") and isinstance(value, int):
        for power, unit in ((30, "GiB"), (20, "MiB")):
            if value % (1 << power) == 0:
                return f"{value} ({value >> power} {unit})"
    return f"{value:g}" if isinstance(value, float) else f"`{value}`" if isinstance(value, str) else str(value)


def _make_settings(model: type[BaseModel], without: frozenset[str] = frozenset()) -> str:
    rows = ["| setting | default | |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if name not in without:
            assert field.description, f"{model.__name__}.{name} has no description"
            rows.append(f"| `{name}` | {_show_default(name, field)} | {field.description.replace('|', '/')} |")
    return "\n".join(rows)


def _make_service(model: type[BaseModel]) -> Callable[[], str]:
    common = frozenset(
        name
        for name, field in config.ServiceConfig.model_fields.items()
        if name in model.model_fields and model.model_fields[name].default == field.default
    )
    return lambda: _make_settings(model, common)


def make_options(scheme: str) -> str:
    """The options of a scheme."""
    rows = ["| option | value | default | |", "|---|---|---|---|"]
    for option in describe_options(scheme):
        secret = " (a secret: never shown)" if option.secret else ""
        rows.append(f"| `{option.name}` | {option.shown_kind} | {option.default} | {option.help}{secret} |")
    return "\n".join(rows)


def list_metrics() -> list[tuple[str, str, tuple[str, ...], str]]:
    """Attribute, name as it is scraped, labels and sentence of each metric."""
    found = []
    metrics: dict[str, Any] = vars(Metrics())
    for attribute, metric in metrics.items():
        if isinstance(metric, Counter | Gauge | Histogram):
            name = metric._name + ("_total" if isinstance(metric, Counter) else "")
            found.append((attribute, name, metric._labelnames, metric._documentation))
        elif isinstance(metric, RequestTimes):
            for name, sentence in metric.named:
                found.append((attribute, f"{NAMESPACE}_{name}", ("op",), sentence))
    return found


def make_metrics() -> str:
    """All metrics."""
    rows = ["| metric | labels | |", "|---|---|---|"]
    rows += [f"| `{name}` | {', '.join(labels)} | {sentence} |" for _, name, labels, sentence in list_metrics()]
    return "\n".join(rows)


SETTINGS: dict[str, Callable[[], str]] = {
    "common": lambda: _make_settings(config.ServiceConfig),
    "tls": lambda: _make_settings(config.TlsConfig),
    "master": _make_service(config.MasterConfig),
    "worker": _make_service(config.WorkerConfig),
    "cache_dirs": lambda: _make_settings(config.CacheDirConfig),
    "fuse": _make_service(config.FuseConfig),
    "client": lambda: _make_settings(config.ClientConfig),
    "csi": lambda: _make_settings(config.CsiConfig),
    "metrics": make_metrics,
}


TABLES: dict[str, Mapping[str, Callable[[], str]]] = {
    "operations.md": SETTINGS,
    "stores.md": {f"options of {scheme}": partial(make_options, scheme) for scheme in list_schemes()},
}
"""By document."""


def fill_in(document: str, text: str) -> str:
    """A document with its tables as the code has them."""
    for name, make in TABLES[document].items():
        begin, end = f"<!-- BEGIN {name} -->\n", f"<!-- END {name} -->"
        assert text.count(begin) == text.count(end) == 1, f"docs/{document} has no place for the table {name}"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{make()}\n{end}{rest.partition(end)[2]}"
    return text


def fill_in_schema(text: str) -> str:
    """The schema of the chart's values with the settings that `config` may have."""
    schema = json.loads(text)
    tables = schema["properties"]["config"]["properties"]
    for name in tables:
        model = config.ServiceConfig if name == "common" else config.SERVICES[name]
        tables[name]["properties"] = {setting: {} for setting in sorted(model.model_fields)}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(fill_in_schema(SCHEMA.read_text()))
    for document in TABLES:
        path = DOCUMENTS / document
        path.write_text(fill_in(document, path.read_text()))
