"""The documents against the code: tables, commands and their options, links, and the tests that clauses name."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alluxio_like.client import SyncClient
from tests.docs_tables import SCHEMA, TABLES, fill_in, fill_in_schema, list_metrics

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *sorted(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def name_document(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(params=DOCUMENTS, ids=name_document)
def document(request: pytest.FixtureRequest) -> Path:
    path = request.param
    assert isinstance(path, Path)
    return path


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_those_of_the_code(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    assert text == fill_in(name, text), "run: python -m tests.docs_tables"


def test_the_chart_knows_the_settings() -> None:
    text = SCHEMA.read_text()
    assert text == fill_in_schema(text), "run: python -m tests.docs_tables"


def test_every_metric_is_counted_somewhere() -> None:
    source = "\n".join(
        path.read_text()
        for path in (ROOT / "alluxio_like").rglob("*.py")
        if path.name != "metrics.py" and path.parent.name != "v1"
    )
    # What never changes is set where it is defined.
    counted = [(attribute, name) for attribute, name, _, _ in list_metrics() if attribute != "build"]
    unused = [name for attribute, name in counted if not re.search(rf"metrics\.{attribute}\b", source)]
    assert not unused


def test_every_link_leads_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), target


# commands


def list_commands(text: str) -> Iterator[list[str]]:
    """Every command line of ours in a document: in code spans and blocks."""
    lines = re.findall(r"`([^`\n]+)`", text)
    for block in re.findall(r"(?:^(?: {4}.*|)\n)+", text.replace("\\\n", " "), flags=re.MULTILINE):
        inside = [line.strip() for line in block.splitlines()]
        # Where commands are shown with what they print, a prompt tells them apart.
        prompted = [line.removeprefix("$ ") for line in inside if line.startswith("$ ")]
        lines += prompted or inside
    for line in lines:
        words = re.sub(r"\s+#.*$", "", line).split()
        if words and words[0] in {"alluxio-like", "cache"}:
            yield words


def test_every_command_and_option_exists(document: Path) -> None:
    from typer.main import get_command

    from alluxio_like.cli.cache import app as cache_app
    from alluxio_like.cli.main import app as main_app

    programs: dict[str, Any] = {"alluxio-like": get_command(main_app), "cache": get_command(cache_app)}
    for words in list_commands(document.read_text()):
        command, rest = programs[words[0]], words[1:]
        while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
            assert rest[0] in command.commands, words
            command, rest = command.commands[rest[0]], rest[1:]
        options = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts} | {
            "-h",
            "--help",
        }
        for word in rest:
            option = word.partition("=")[0]
            if option.startswith("-") and option != "-":
                assert option in options, words


def test_there_are_commands_to_check() -> None:
    assert len([words for path in DOCUMENTS for words in list_commands(path.read_text())]) > 30


def test_every_call_of_the_client_is_in_its_table() -> None:
    table = (ROOT / "docs/python.md").read_text().partition("## All calls")[2]
    calls = [name for name in vars(SyncClient) if not name.startswith("_")]
    assert [name for name in calls if f"`{name}" not in table] == []


# semantics


@functools.cache
def list_tests(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    # Hypothesis machines are named by their class's TestCase.
    return {name for name in found if name.startswith("test_")} | {
        target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)
    }


@pytest.mark.parametrize(
    "path", ["docs/SEMANTICS.md", *(f"docs/decisions/{p.name}" for p in (ROOT / "docs/decisions").glob("0*.md"))]
)
def test_the_tests_that_are_named_exist(path: str) -> None:
    text = (ROOT / path).read_text()
    short = dict(re.findall(r"`(\w+)` is\s+`([\w/]+\.py)`", (ROOT / "docs/SEMANTICS.md").read_text()))
    for file, test in re.findall(r"`([\w/.]+)::(\w+)`", text):
        place = ROOT / "tests" / short.get(file, file if file.endswith(".py") else f"{file}.py")
        assert place.exists(), file
        assert test in list_tests(place), f"{file}::{test}"


def test_every_clause_names_a_test() -> None:
    text = (ROOT / "docs/SEMANTICS.md").read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    for section in sections:
        for clause in re.split(r"^(?=\d+\. )", section.partition("\n")[2], flags=re.MULTILINE)[1:]:
            assert "::" in clause, clause


# what crosses the wire


def test_every_message_and_call_is_described() -> None:
    bare = []
    # CSI's is published so; it is not ours to describe.
    for file in sorted((ROOT / "proto/alluxio_like/rpc").rglob("*.proto")):
        before = ""
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if re.match(r"\s*(message|service|enum|rpc) ", line) and not before.lstrip().startswith("//"):
                bare.append(f"{file.name}:{number}: {line.strip()}")
            before = line
    assert not bare


# concurrency


def test_every_lock_is_named() -> None:
    text = (ROOT / "docs/CONCURRENCY.md").read_text()
    made = re.compile(
        r"^\s*(?:self\.)?(\w+)(?:: [^=\n]+)? = (?:field\(default_factory=lambda: )?"
        r"(?:threading|asyncio)\.(?:R?Lock|Condition|Semaphore)\(",
        re.MULTILINE,
    )
    unnamed = [
        f"{path.stem}: {name}"
        for path in sorted((ROOT / "alluxio_like").rglob("*.py"))
        for name in made.findall(path.read_text())
        if not re.search(rf"`(?:\w+\.)*{path.stem}[\w.]*\.{name}`|`{path.stem}` `{name}`", text)
    ]
    assert not unnamed


def test_every_decision_is_in_the_list() -> None:
    listed = (ROOT / "docs/decisions/README.md").read_text()
    assert [path.name for path in (ROOT / "docs/decisions").glob("0*.md") if f"]({path.name})" not in listed] == []


def test_every_module_that_is_named_exists(document: Path) -> None:
    for name in re.findall(r"`([\w/]+\.py)`", document.read_text()):
        places = [ROOT / name, ROOT / "alluxio_like" / name, ROOT / "tests" / name]
        # A bare name stands in a sentence or row about its package.
        known = any(place.exists() for place in places) or ("/" not in name and any((ROOT / "alluxio_like").rglob(name)))
        assert known, name
