"""Policies of other packages: one that is installed is used, and one that does wrong is named."""

import sys
import tomllib
from pathlib import Path

import pytest

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from tests.cluster.documents import run

from .test_plugin_router import install

GROUP = "pimserve.policies"
EXAMPLE = Path(__file__).parents[2] / "example_policy"
SCENARIO = [
    *("model=llama-3.1-8b", "cluster.device=h100", "cluster.devices_per_node=1", "scheduler.max_num_seqs=2"),
    "workload={arrival: {process: poisson, rate_per_s: 50}, num_requests: 40, "
    "lengths: {input: {kind: uniform, low: 10, high: 2000}, output: {kind: fixed, tokens: 20}}}",
]

WRONG = {
    "return 1.0": "gave the key 1.0; a whole number is needed",
    "return None": "gave the key None; a whole number is needed",
    "raise RuntimeError('no idea')": "failed to give a request its key: RuntimeError: no idea",
    "request.arrival_ps = 5": "failed to give a request its key: AttributeError: can't set attribute",
}


def test_an_installed_policy_is_found_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    install(monkeypatch, tmp_path, EXAMPLE, project["entry-points"][GROUP], GROUP)
    chosen = prepare(load_scenario(None, [*SCENARIO, "scheduler.policy=shortest_prompt"]))
    ordered = run(chosen, tmp_path / "ordered")
    again = run(prepare(load_scenario(tmp_path / "ordered" / "scenario.yaml")), tmp_path / "again")
    kept = run(chosen, tmp_path / "kept", checkpoints=tmp_path / "state")
    assert ordered["digest"] == again["digest"] == kept["digest"]
    assert ordered["requests"]["finished"] == 40
    assert ordered["simulator"]["plugins"] == {f"{GROUP}:shortest_prompt": f"{EXAMPLE.name} 1.0"}
    plain = run(prepare(load_scenario(None, SCENARIO)), tmp_path / "plain")
    assert ordered["latency_s"]["ttft"]["mean"] < plain["latency_s"]["ttft"]["mean"]


@pytest.mark.parametrize("body", WRONG)
def test_one_that_does_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    source = tmp_path / "broken_policy"
    source.mkdir()
    (source / "broken.py").write_text(f"class Policy:\n    def key(self, request):\n        {body}\n")
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    install(monkeypatch, tmp_path, source, {"mine": "broken:Policy"}, GROUP)
    with pytest.raises(InputError) as refused:
        run(prepare(load_scenario(None, [*SCENARIO, "scheduler.policy=mine"])), tmp_path / "r")
    assert str(refused.value) == f"scheduler.policy: policy 'mine' of broken:Policy {WRONG[body]}"
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_package:Policy", "does not load: ModuleNotFoundError: No module named 'no_such_package'"),
        ("builtins:dict", "has no method `key(request)`"),
    ],
)
def test_one_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, message: str) -> None:
    install(monkeypatch, tmp_path, EXAMPLE, {"other": target}, GROUP)
    with pytest.raises(InputError) as refused:
        run(prepare(load_scenario(None, [*SCENARIO, "scheduler.policy=other"])), tmp_path / "r")
    assert str(refused.value) == f"scheduler.policy: policy 'other' of {target} {message}"
