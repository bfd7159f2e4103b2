"""What can be wrong in a file of AIMC cases, and the message: file, case, key, what is allowed."""

import json
from collections.abc import Callable
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pimserve.cluster.cli.main import app
from pimserve.cluster.validation.validate_aimc import validate_aimc
from pimserve.errors import InputError

FILE = resources.files("pimserve.cluster.validation") / "aimc_cases.json"
CASES: dict[str, dict[str, Any]] = {case["id"]: case for case in json.loads(FILE.read_text(encoding="utf-8"))["cases"]}
DENSE, MOE, AFFINE = "open-01-hand-chain", "open-03-hand-moe-top2", "open-16-small-tiers-util"
GONE = object()  # in a change: leave the key out


def changed(name: str, **changes: Any) -> dict[str, Any]:
    """A built-in case with some keys, given as paths with __ between, replaced."""
    case = deepcopy(CASES[name])
    for path, value in changes.items():
        *way, last = path.split("__")
        part: Any = case
        for key in way:
            part = part[int(key) if isinstance(part, list) else key]
        last = int(last) if isinstance(part, list) else last
        if value is GONE:
            del part[last]
        else:
            part[last] = value
    return case


def written(folder: Path, *cases: Any) -> Path:
    path = folder / "mine.json"
    path.write_text(json.dumps({"format": "aimc-reference-cases/1", "cases": list(cases)}), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """Why nothing in a file was run."""
    with pytest.raises(InputError) as refused:
        validate_aimc(path)
    return str(refused.value)


def last_refusal(path: Path) -> str:
    """Why the last case of a file was not run; those before it were."""
    *others, refused = validate_aimc(path)
    assert all(found.passed for found in others)
    assert (refused.ours, refused.passed) == (None, False)
    return refused.note


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ":1: not valid JSON"),
        (FILE.read_text(encoding="utf-8")[:5000], "not valid JSON"),
        ("tiles: 3", ":1: not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"cases": [' + "9" * 5000 + "]}", "not valid JSON"),
        ("[]", 'must be an object whose key "cases" holds a list of at least one case'),
        ('{"cases": []}', "at least one case"),
        ('{"cases": {"id": "x"}}', "at least one case"),
        ('{"targets": [{"id": "x"}]}', "at least one case"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="utf-8")
    message = refusal(path)
    assert message.startswith(str(path))
    assert says in message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot read the cases: No such file" in refusal(tmp_path / "absent.json")
    assert "cannot read the cases: Is a directory" in refusal(tmp_path)
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(binary)


@pytest.mark.parametrize(
    ("row", "says"),
    [(7, "must be an object"), ({}, "`id` must be a text"), ({"id": ""}, "`id` must be a text")],
)
def test_entries_that_are_no_cases(tmp_path: Path, row: object, says: str) -> None:
    path = written(tmp_path, CASES[DENSE], row)
    assert last_refusal(path) == f"{path}: case 2: {says}"


def test_an_id_given_twice(tmp_path: Path) -> None:
    path = written(tmp_path, CASES[DENSE], CASES[MOE], CASES[DENSE])
    assert last_refusal(path) == f"{path}: case {DENSE}: the id is given twice"


def test_a_bad_case_does_not_stop_the_file(tmp_path: Path) -> None:
    bad = changed("open-02-hand-one-tile", hardware__tiles=0)
    empty = changed("open-04-hand-prefill", result={}, derived={})
    path = written(tmp_path, CASES[DENSE], bad, CASES[MOE], empty, CASES["open-05-hand-batch"])
    found = validate_aimc(path)
    assert {each.id for each in found if each.passed} == {DENSE, MOE, "open-05-hand-batch"}
    assert [(each.id, each.ours, each.note.split(": ")[1]) for each in found if each.passed is False] == [
        ("open-02-hand-one-tile", None, "case open-02-hand-one-tile.hardware.tiles"),
        ("open-04-hand-prefill", None, "case open-04-hand-prefill"),
    ]
    # The command reports it, runs the others, and fails.
    ran = CliRunner().invoke(app, ["validate", "aimc", "--cases", str(path)])
    assert ran.exit_code == 1
    shown = " ".join(ran.stdout.split())  # lines break where the terminal ends
    assert "not run: open-02-hand-one-tile" in shown
    assert "must be greater than 0 (got 0)" in shown
    assert "3 of 5 cases met; 36 of 36 figures met" in shown
    assert "2 not run" in shown
    listed = json.loads(CliRunner().invoke(app, ["validate", "aimc", "--cases", str(path), "--json"]).stdout)
    assert [each["ours"] for each in listed if each["passed"] is False] == [None, None]


@pytest.mark.parametrize(
    "key", ["hardware", "cost", "model", "mapping_strategy", "workload", "communication", "result"]
)
def test_every_input_has_to_be_there(tmp_path: Path, key: str) -> None:
    path = written(tmp_path, changed(DENSE, **{key: GONE}))
    assert refusal(path) == f"{path}: case {DENSE}.{key}: is missing"


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    # Missing and unknown keys.
    (DENSE, {"hardware__tiles": GONE}, "hardware.tiles: is missing"),
    (DENSE, {"workload__target_len": GONE}, "workload.target_len: is missing"),
    (DENSE, {"model__d_ff": GONE}, "model.d_ff: is missing"),
    (DENSE, {"mapping_strategy__strategy": GONE}, "mapping_strategy.strategy: is missing"),
    (AFFINE, {"cost__params__add_base_ns": GONE}, "cost.params.add_base_ns: is missing"),
    (AFFINE, {"cost__params": GONE}, "cost.params.mha_base_ns: is missing"),
    (DENSE, {"hardware__tyles": 3}, "hardware.tyles: unknown key; did you mean tiles? (known: tiles, tiers,"),
    (DENSE, {"hardware__dram_bandwidth_GBPs": 3}, "did you mean dram_bandwidth_GBps?"),
    (DENSE, {"model__expert": 3}, "model.expert: unknown key"),
    (AFFINE, {"cost__params__speed": 3}, "cost.params.speed: unknown key (known: mha_base_ns, mha_flop_per_ns,"),
    (AFFINE, {"cost__params__mvm_ns": 3}, "cost.params.mvm_ns: unknown key"),
    (DENSE, {"cost__params": {"mha_base_ns": 1}}, "cost.params: must be left out where cost.model is 'shipped'"),
    # Wrong types.
    (DENSE, {"hardware": 5}, "hardware: must be a mapping"),
    (DENSE, {"hardware__tiles": "32"}, "hardware.tiles: must be a whole number (got '32')"),
    (DENSE, {"hardware__tiles": 3.5}, "hardware.tiles: must be a whole number (got 3.5)"),
    (DENSE, {"hardware__tiles": True}, "hardware.tiles: must be a whole number (got true)"),
    (DENSE, {"hardware__kv_caching": 1}, "hardware.kv_caching: must be true or false (got 1)"),
    (DENSE, {"communication": "yes"}, "communication: must be true or false (got 'yes')"),
    (AFFINE, {"cost__params__add_base_ns": "fast"}, "cost.params.add_base_ns: must be a number (got 'fast')"),
    # Out of range.
    (DENSE, {"hardware__tiles": 0}, "hardware.tiles: must be greater than 0"),
    (DENSE, {"hardware__tiers": -1}, "hardware.tiers: must be greater than 0 (got -1)"),
    (DENSE, {"hardware__num_mha_units": 0}, "hardware.num_mha_units: must be greater than 0"),
    (DENSE, {"hardware__mvm_latency_ns": -100}, "hardware.mvm_latency_ns: must be greater than or equal to 0.001"),
    (DENSE, {"hardware__mvm_energy_nJ": -1}, "hardware.mvm_energy_nJ: must be greater than or equal to 0"),
    (DENSE, {"hardware__dram_bandwidth_GBps": 0}, "hardware.dram_bandwidth_GBps: must be greater than or equal"),
    (DENSE, {"hardware__mvm_latency_ns": float("inf")}, "hardware.mvm_latency_ns: must be a finite number"),
    (DENSE, {"hardware__mvm_latency_ns": float("nan")}, "hardware.mvm_latency_ns: must be"),
    (DENSE, {"hardware__mvm_latency_ns": 1e300}, "mvm_latency_ns: must be less than or equal to 1000000000000"),
    (DENSE, {"hardware__mvm_energy_nJ": 1e308}, "mvm_energy_nJ: must be less than or equal to 1000000000000"),
    (DENSE, {"hardware__tier_shape": [512]}, "hardware.tier_shape: must have at least 2 entries (got 1)"),
    (DENSE, {"hardware__tier_shape": [512, 512, 2]}, "hardware.tier_shape: "),
    (DENSE, {"hardware__tier_shape": [512, 0]}, "hardware.tier_shape.1: must be greater than 0"),
    (DENSE, {"model__vocab": -512}, "model.vocab: must be greater than 0"),
    (AFFINE, {"cost__params__add_base_ns": -2}, "cost.params.add_base_ns: must be greater than or equal to 0"),
    (AFFINE, {"cost__params__add_elem_per_ns": 0}, "cost.params.add_elem_per_ns: must be greater than or equal"),
    (DENSE, {"hardware__mvm_latency_ns": 1e12, "workload__sequences": 10_000}, "takes more than 2^63 ps"),
    (DENSE, {"workload__sequences": 10**7}, "workload: asks for about 120,000,000 products; at most 10,000,000"),
    (DENSE, {"model__layers": 10**6}, "model.layers: make about 7,000,000 matrices; at most 1,000,000"),
    (DENSE, {"workload__sequences": 0}, "workload.sequences: must be greater than 0"),
    (DENSE, {"workload__target_len": 1}, "workload.target_len: must be above start_len, 1 (got 1)"),
    # Unknown names.
    (DENSE, {"cost__model": "exact"}, "cost.model: must be 'shipped' or 'affine' (got 'exact')"),
    (DENSE, {"model__activation": "swish"}, "model.activation: must be 'relu' or 'gelu' (got 'swish')"),
    (DENSE, {"mapping_strategy__strategy": "GREEDY"}, "strategy: must be 'greedy_in_order', 'greedy_util'"),
    (DENSE, {"mapping_strategy__strategy": 3}, "mapping_strategy.strategy: must be 'greedy_in_order'"),
    (DENSE, {"result__op_counts__mvm": 8}, "result.op_counts.mvm: unknown key"),
    (DENSE, {"result__op_counts__digital_sub": 8}, "digital_sub: unknown key; did you mean"),
    (DENSE, {"result__energy_breakdown_nJ__tiles": 8}, "result.energy_breakdown_nJ.tiles: unknown key"),
    (DENSE, {"result__op_latency_sums_ns__mha": 8}, "result.op_latency_sums_ns.mha: must be a mapping"),
    # Experts.
    (MOE, {"model__top_k": 5}, "model.top_k: must be 1 to num_experts, 4 (got 5)"),
    (MOE, {"model__top_k": GONE}, "model.top_k: must be 1 to num_experts, 4 (got 0)"),
    (DENSE, {"model__top_k": 1}, "model.top_k: must be 0, or left out, without experts (got 1)"),
    (MOE, {"model__moe_frequency": 0}, "model.moe_frequency: must be greater than 0"),
    (MOE, {"model__expert_density": [0.5, 0.5]}, "model.expert_density: must hold probabilities of 4 experts, or"),
    (MOE, {"model__expert_density": [[0.1] * 4] * 3}, "model.expert_density: must hold"),
    (MOE, {"model__expert_density": [-1, 1, 1, 0]}, "model.expert_density: must hold"),
    (MOE, {"model__expert_density": ["a"] * 4}, "model.expert_density: must hold"),
    (MOE, {"mapping_strategy__density": [0.5]}, "mapping_strategy.density: must hold probabilities of 4 experts, or"),
    (MOE, {"mapping_strategy__density": [[0.1] * 4, [0.1]] * 2}, "mapping_strategy.density: must hold"),
    (MOE, {"mapping_strategy__density": 1}, "mapping_strategy.density: must be a list"),
    (DENSE, {"mapping_strategy__density": [1.0]}, "mapping_strategy.density: must be left out of a model without"),
    (MOE, {"derived__routing": GONE}, "derived.routing: is missing; the experts of each token cannot be known"),
    (MOE, {"derived": GONE}, "derived.routing: is missing"),
    (MOE, {"derived__routing": []}, "derived.routing: must have 1 steps, one for each generated token (got 0)"),
    (MOE, {"derived__routing__0": {"1": [[1, 3]]}}, "derived.routing.0: must have the MoE layers 0 (got 1)"),
    (MOE, {"derived__routing__0__0": []}, "derived.routing.0.0: must have 1 tokens (got 0)"),
    (MOE, {"derived__routing__0__0__0": [1]}, "derived.routing.0.0.0: must be 2 different experts below 4 (got [1])"),
    (MOE, {"derived__routing__0__0__0": [1, 1]}, "must be 2 different experts below 4 (got [1, 1])"),
    (MOE, {"derived__routing__0__0__0": [1, 4]}, "must be 2 different experts below 4 (got [1, 4])"),
    (MOE, {"derived__routing__0__0__0": [1, -1]}, "derived.routing.0.0.0.1: must be greater than or equal to 0"),
    (DENSE, {"derived__routing": [{"0": [[1, 3]]}]}, "derived.routing: must be left out of a model without experts"),
    # Mapping.
    (DENSE, {"hardware__tiles": 8}, "hardware.tiles: the network does not fit: it needs 9 tiers"),
    (
        MOE,
        {"mapping_strategy": {"strategy": "MOE_SEPARATED", "split_ffn": False, "stack_embedding": True}},
        "mapping_strategy.split_ffn: must be true with moe_separated",
    ),
    (DENSE, {"derived__chunk_grid__lm_head": [1]}, "derived.chunk_grid.lm_head: must have at least 2 entries (got 1)"),
    (DENSE, {"derived__chunk_grid__lm_head": [0, 1]}, "derived.chunk_grid.lm_head.0: must be greater than 0"),
    (DENSE, {"derived__chunk_grid__lm_head": "1 x 1"}, "derived.chunk_grid.lm_head: must be a list"),
    (DENSE, {"derived__mapping__lm_head": [[1]]}, "derived.mapping.lm_head.0: must have at least 2 entries"),
    (DENSE, {"derived__mvms_per_tile": [1, 1]}, "derived.mvms_per_tile: must have 32 tiles (got 2)"),
    # Results.
    (DENSE, {"result": {}}, "must have a result or derived value that ours can be held against"),
    (DENSE, {"result__latency_ns": "853"}, "result.latency_ns: must be a number (got '853')"),
    (DENSE, {"result__latency_ns": -853}, "result.latency_ns: must be greater than or equal to 0"),
    (DENSE, {"result__op_counts__mha": 1.5}, "result.op_counts.mha: must be a whole number (got 1.5)"),
    (DENSE, {"result__op_counts__mha": 10**400}, "result.op_counts.mha: must be less than or equal to"),
    (DENSE, {"result__token_finish_ns": {"1": [853]}}, "token_finish_ns.1: must be the number of a sequence, 0 to 0"),
    (DENSE, {"result__token_finish_ns": {"0": []}}, "token_finish_ns.0: must have 1 times, one for each generated"),
]  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize(("name", "changes", "says"), MISTAKES, ids=[says[:40] for _, _, says in MISTAKES])
def test_mistakes_name_file_case_key_and_what_is_allowed(
    tmp_path: Path, name: str, changes: dict[str, Any], says: str
) -> None:
    if changes == {"result": {}}:
        changes = {**changes, "derived": {}}
    path = written(tmp_path, CASES["open-02-hand-one-tile"], changed(name, **changes))
    message = last_refusal(path)
    assert message.startswith(f"{path}: case {name}")
    assert says in message


def test_several_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, changed(DENSE, hardware__tiles=0, model__heads=0, workload__sequences=0)))
    assert [line.split(": ")[1] for line in message.splitlines()] == [
        f"case {DENSE}.{key}" for key in ("hardware.tiles", "model.heads", "workload.sequences")
    ]


def random_mapping(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """A case whose mapping was made by chance, so that the run needs the one that it holds."""
    case = changed(MOE, mapping_strategy__strategy="GREEDY_RANDOM")
    change(case["derived"])
    return case


LM_HEAD, OUT = "lm_head", "decoder_stack.layers.0.out_proj"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda derived: derived.pop("mapping"), "is missing; greedy_random cannot be repeated"),
        (lambda derived: derived["mapping"].pop(LM_HEAD), "derived.mapping.lm_head: is missing"),
        (lambda derived: derived["mapping"].update({LM_HEAD: []}), "derived.mapping.lm_head: must place 1 x 1 chunks"),
        (lambda derived: derived["mapping"].update({LM_HEAD: [[20, 0]] * 2}), "must place 1 x 1 chunks (got 2)"),
        (
            lambda derived: derived["mapping"].update({LM_HEAD: [[32, 0]]}),
            "must be on tiles below 32 and tiers below 1",
        ),
        (lambda derived: derived["mapping"].update({LM_HEAD: [[20, 1]]}), "(got [20, 1])"),
        (lambda derived: derived["mapping"].update({LM_HEAD: [[5, 0]]}), "tile 5, tier 0 holds another chunk already"),
    ],
)
def test_a_mapping_made_by_chance_has_to_be_whole(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    message = refusal(written(tmp_path, random_mapping(change)))
    assert f"case {MOE}.derived.mapping" in message
    assert says in message
