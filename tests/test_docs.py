"""The documentation: generated pages are current, commands parse, links lead somewhere, examples run."""

import re
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest
import typer

from pimserve.cluster.cli.main import app
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from pimserve.loadgen.traces import find_trace
from tests.cluster.documents import serve
from tests.pages import pages_script

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/**/*.md"))]
EXAMPLES = sorted(ROOT.glob("examples/*.yaml"))


def code_lines(page):
    """Lines of a page's code blocks, or of an example's comments; continued lines joined."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":
        blocks = re.findall(r"^#.*?((?:pimserve|make) .*)$", text, re.MULTILINE)
    else:
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "\n".join(blocks).replace("\\\n", " ").splitlines()


def commands(page, program):
    """Arguments of each call of `program`: comments, redirections and shell loops are taken away, $variables are 1."""
    for line in code_lines(page):
        tokens = shlex.shlex(re.sub(r"\$\w+", "1", line), posix=True, punctuation_chars=";>|&")
        tokens.whitespace_split = True
        calls = [[]]
        for token in tokens:
            if token in (";", "|", "&&", "do", "done"):
                calls.append([])
            else:
                calls[-1].append(token)
        for call in calls:
            if call and call[0].rpartition("/")[2] == program:
                yield call[1 : call.index(">")] if ">" in call else call[1:]


CALLS = [(page, call) for page in [*PAGES, *EXAMPLES] for call in commands(page, "pimserve")]


def test_commands_are_found():
    assert {call[0] for page, call in CALLS if page.name == "README.md"} >= {"run", "compare", "validate", "schema"}
    assert {page for page, _ in CALLS} >= set(EXAMPLES)


@cache  # what an example says of itself, a page says again
def prepared(path, overrides=(), trace=None):
    return prepare(load_scenario(path, overrides, trace))


@pytest.mark.medium
@pytest.mark.parametrize(("page", "call"), CALLS, ids=[f"{page.name}: {' '.join(call)}" for page, call in CALLS])
def test_commands_parse(page, call):
    command = typer.main.get_command(app)
    arguments = list(call)
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    given = command.make_context(command.name, arguments).params
    if command.name == "run":
        scenario = ROOT / given["scenario"] if given["scenario"] else None
        prepared(scenario, tuple(given["overrides"] or ()), given["trace"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for call in commands(page, "make"):
        assert {word for word in call if "=" not in word} <= targets


@cache
def anchors(page):
    slug = pages_script().slug
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target
    for name in re.findall(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|md|yaml|json|toml))`", text):
        assert (ROOT / name).exists(), name


SLOW_PAGE = pytest.param("duplex_validation.md", marks=pytest.mark.slow)  # those of others: tests/validation


@pytest.mark.parametrize("page", ["scenario.md", "summary.md", "cli.md", "grpc.md", "metrics.md", SLOW_PAGE])
def test_generated_pages_are_current(page, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pages.py", "--check", page])
    assert pages_script().main() == 0, capsys.readouterr()


def test_check_finds_a_stale_page(tmp_path, monkeypatch, capsys):
    script = pages_script()
    monkeypatch.setattr(script, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["pages.py", "--check", "scenario.md"])
    assert script.main() == 1
    assert "out of date" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["pages.py", "scenario.md"])
    assert script.main() == 0
    assert (tmp_path / "scenario.md").read_text(encoding="utf-8") == script.scenario_page()


@pytest.mark.medium
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path):
    whole = prepared(path).scenario
    if whole.workload.trace is not None:
        try:
            find_trace(whole.workload.trace.path)
        except InputError as error:
            pytest.skip(str(error))
    few = max(20, whole.workload.concurrency or 0)
    counted = "num_requests" if whole.workload.sessions is None else "sessions.num_sessions"
    scenario = load_scenario(path, [f"workload.{counted}={few}", "run.warmup_s=0", "run.cooldown_s=0"])
    summary, _ = serve(prepare(scenario))
    requests = summary["requests"]
    assert requests["finished"] == requests["total"]
    assert requests["total"] == few if whole.workload.sessions is None else requests["total"] > few
    assert summary["name"] == path.stem.replace("_", "-")
