"""The command line starts fast because it imports late: what is heavy is loaded by the command that needs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"numpy", "pydantic", "pydantic_core", "yaml"}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `statement`."""
    report = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{report}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", ["pimserve", "pimserve.errors"])
def test_the_root_imports_nothing_but_the_standard_library(module):
    assert loaded_by(f"import {module}") - {"pimserve"} <= sys.stdlib_module_names | loaded_by("pass")


def test_importing_the_command_line_loads_nothing_heavy():
    assert loaded_by("import pimserve.cluster.cli.main") & (HEAVY | {"rich"}) == set()


def test_help_loads_nothing_heavy():
    show_help = """
import sys
from pimserve.cluster.cli.main import main
sys.argv = ["pimserve", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""
    assert loaded_by(show_help) & HEAVY == set()


@pytest.mark.medium
def test_a_run_in_this_process_loads_nothing_of_other_processes(tmp_path: Path):
    """Tens of megabytes, and a tenth of a second."""
    run = f"""
import sys
from pimserve.cluster.cli.main import main
sys.argv = ["pimserve", "run", "--set", "workload.num_requests=2", "--out", {str(tmp_path / "run")!r}]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""
    assert loaded_by(run) & {"grpc", "google", "ray", "prometheus_client", "matplotlib"} == set()
