"""Rules that a reader counts on: sizes, names, and that ARCHITECTURE.md draws the layers that are checked."""

import ast
import tomllib
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("device_models", "loadgen", "scheduler", "cluster")
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
FILES = {
    path.relative_to(ROOT): path.read_text(encoding="utf-8")
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
CONTRACTS = {contract["id"]: contract["layers"] for contract in LINTER["contracts"] if contract["type"] == "layers"}


@cache
def trees():
    """The files parsed, which takes two seconds."""
    return {path: ast.parse(text) for path, text in FILES.items()}


def test_files_are_found():
    assert len(FILES) > 200


def test_a_file_is_one_idea():
    assert [str(path) for path, text in FILES.items() if text.count("\n") > LONGEST_FILE] == []


@pytest.mark.medium
def test_a_function_fits_a_screen():
    long = [
        f"{path}: {node.name}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    ]
    assert long == []


def test_a_name_of_a_file_means_one_thing():
    places = defaultdict(list)
    for path in FILES:
        if path.name != "__init__.py":
            places[path.name].append(str(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


@pytest.mark.medium
def test_nobody_imports_what_another_module_keeps_private():
    private = [
        f"{path}: {alias.name} of {node.module}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert private == []


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=str)
def test_a_package_says_what_it_is_for(path):
    assert ast.get_docstring(trees()[path])


@pytest.mark.parametrize("contract", CONTRACTS)
def test_the_picture_shows_the_layers_that_are_checked(contract):
    """In ARCHITECTURE.md each layer stands on a line of its own, the upper ones first."""
    picture = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    lines = [set(line.replace("|", " ").split()) for line in picture.splitlines()]
    at = [
        next(number for number, words in enumerate(lines) if set(layer.replace("|", " ").split()) <= words)
        for layer in CONTRACTS[contract]
    ]
    assert at == sorted(set(at))
