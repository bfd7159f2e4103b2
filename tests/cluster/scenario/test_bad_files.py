"""What can be wrong with a scenario's file, or with the folder for results, and the message."""

from pathlib import Path

import pytest

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from tests.cluster.documents import run
from tests.cluster.scenario.refusals import refusal

# Scenario files; the message begins with the file and, where there is one, the line.
FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", ": must be a mapping"),
    "comment only": (b"# nothing\n", ": must be a mapping"),
    "list": (b"- model: x\n", ": must be a mapping"),
    "scalar": (b"mixtral", ": must be a mapping"),
    "unclosed bracket": (b"run:\n  seed: [1\n", ":3: not valid YAML"),
    "tab": (b"run:\n\tseed: 1\n", ":2: not valid YAML"),
    "bad indentation": (b"run:\n  seed: 1\n warmup_s: 2\n", ":3: not valid YAML"),
    "duplicate key": (b"run:\n  seed: 1\n  seed: 2\n", ":3: not valid YAML: key 'seed' is given twice"),
    "duplicate section": (b"name: a\nrun: {}\nname: b\n", ":3: not valid YAML: key 'name' is given twice"),
    "two documents": (b"name: a\n---\nname: b\n", ":2: not valid YAML"),
    "unknown tag": (b"name: !!python/name:os.system\n", ":1: not valid YAML: could not determine a constructor"),
    "unknown alias": (b"name: *x\n", ":1: not valid YAML: found undefined alias"),
    "unhashable key": (b"run: {}\n? [a]\n: 1\n", ":2: not valid YAML: found unhashable key"),
    "impossible date": (b"run: {seed: 2020-13-45}", ": not valid YAML: month must be in 1..12"),
    "endless number": (
        b"run: {seed: " + b"9" * 5000 + b"}",
        ":1: not valid YAML: a number of 5,000 characters; 100 at most",
    ),
    "control character": (b"run: {}\nname: a\x07b\n", ":2: not valid YAML: character '\\x07'"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff", ": is not UTF-8 text (byte 0)"),
    "Latin-1": (b"name: caf\xe9\n", ": is not UTF-8 text (byte 9)"),
}


@pytest.mark.parametrize("name", FILES)
def test_scenario_files(name: str, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    content, message = FILES[name]
    file.write_bytes(content)
    assert refusal(tmp_path, file, []).startswith(f"{file}{message}")


def test_scenario_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path, tmp_path / "no.yaml", []) == f"{tmp_path / 'no.yaml'}: no such file"
    assert "is a folder; a scenario is a YAML file" in refusal(tmp_path, tmp_path, [])
    assert "cannot be read: Not a directory" in refusal(tmp_path, Path(__file__) / "s.yaml", [])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("1: 2", "1: keys must be strings"),
        ("run: {1: 2}", "run.1: keys must be strings"),
        ("run:\n  - seed: 1", "run: must be a mapping of keys to values (got a list)"),
        ("workload:", "workload: must be a mapping of keys to values (got null)"),
        ("model: &m {preset: mixtral-8x7b, more: *m}", "{file}: *m is within what it stands for"),
    ],
)
def test_documents_with_odd_keys(document: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(document)
    assert refusal(tmp_path, file, []).startswith(message.replace("{file}", str(file)))


def test_results_folder(tmp_path: Path) -> None:
    scenario = load_scenario(None, ["workload.num_requests=1"])
    for target, message in (
        (tmp_path, f"{tmp_path}: exists already; give another folder with --out"),
        (Path(__file__), "exists already"),
        (Path(__file__) / "results", f"{Path(__file__) / 'results'}: cannot be written: {__file__} is not a directory"),
        (Path("/dev/full/x"), "/dev/full/x: cannot be written: /dev/full is not a directory"),
    ):
        with pytest.raises(InputError) as refused:
            run(prepare(scenario), target)
        assert message in str(refused.value)
    assert list(tmp_path.iterdir()) == []
