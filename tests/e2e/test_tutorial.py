"""What newcomers type: the README's first command, and every one of docs/tutorial.md."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
OURS = {"make run", ". .venv/bin/activate", "pimserve serve"}  # lines for which the test stands in


def said(text):
    """Lines of an output as words and figures; of those about speed and memory the words alone."""
    for line in filter(str.strip, text.splitlines()):
        ours = line.startswith(("simulated in", "the process took"))
        yield re.findall(r"[A-Za-z][A-Za-z/,-]+", line) if ours else line.split()


@pytest.mark.e2e
def test_the_readme_shows_what_the_command_prints(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.split("The first prints this")[1].split("```")[1]
    done = subprocess.run(
        [Path(sys.executable).parent / "pimserve", "run", ROOT / "examples" / "mixtral_duplex.yaml"],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert list(said(shown)) == list(said(done.stdout))


def test_it_shows_the_example():
    (shown,) = (text for language, text in BLOCKS if language == "yaml")
    example = (ROOT / "examples" / "tutorial.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(shown) == yaml.safe_load(example)


@pytest.mark.e2e
@pytest.mark.slow
def test_it_works(tmp_path):
    """All commands in order, in one shell beside one server; outputs that the page shows are those printed."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    scripts, shown = [], {}
    for language, text in BLOCKS:
        if language == "sh":
            scripts.append("\n".join(line for line in text.splitlines() if line not in OURS))
        elif language == "text":
            shown[len(scripts) - 1] = text
    assert shown
    marked = "".join(f"{script}\necho '== end of {number}'\n" for number, script in enumerate(scripts))
    marked = marked.replace("127.0.0.1:9464", "127.0.0.1:0")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "80"}
    plain = {"cwd": tmp_path, "env": environment, "text": True}
    server = subprocess.Popen(["pimserve", "serve", "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, **plain)
    try:
        environment["PIMSERVE_SERVER"] = server.stdout.readline().removeprefix("listening on ").strip()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", marked], capture_output=True, timeout=250, check=False, **plain
        )
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()
    assert done.returncode == 0, done.stdout + done.stderr
    printed = re.split(r"== end of \d+\n", done.stdout)
    for number, text in shown.items():
        expected, lines = list(said(text)), list(said(printed[number]))
        assert expected == lines[: len(expected)], printed[number]
