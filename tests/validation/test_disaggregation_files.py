"""Files of disaggregation cases of one's own: what they may say, which mistakes are told how, and the command."""

import json
from pathlib import Path
from typing import Any

import pytest

from pimserve.cluster.validation.disaggregation_case import QUANTITIES, read_disaggregation
from pimserve.cluster.validation.validate_disaggregation import published_disaggregation, validate_disaggregation
from pimserve.errors import InputError
from tests.command import pimserve
from tests.pages import current, pages_script

PUBLISHED = {case.target.id: case for case in published_disaggregation()}
STEP = {"attention_us": 1, "experts_us": 1, "transfer_us": 1, "layers": 2, "micro_batches": 1}
TINY = {
    "name": "tiny",
    "title": "Tiny",
    "layers": 2,
    "hidden": 64,
    "vocab": 100,
    "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 16},
    "ffn": {"intermediate": 128},
    "max_model_len_tokens": 1024,
}
CHEAP = {"usd_per_hour": 3.6, "bf16_tflop_per_s": 1, "gb_per_s": 1}


def row(**changes: Any) -> dict[str, Any]:
    one = {
        "id": "T1",
        "quantity": "step_time_us",
        "case": STEP,
        "published": 8,
        "tolerance": 0.01,
        "tolerance_kind": "rel",
    }
    return {**one, **changes}


def written(folder: Path, *rows: Any, **parts: Any) -> Path:
    path = folder / "mine.json"
    path.write_text(json.dumps({**parts, "cases": list(rows)}), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as refused:
        validate_disaggregation(path)
    return str(refused.value)


def test_every_quantity_says_what_it_is() -> None:
    assert {case.target.quantity for case in PUBLISHED.values()} <= set(QUANTITIES)
    for form in QUANTITIES.values():
        assert form.__doc__
        assert form.value.__doc__


def test_a_row_is_held_against_its_formula(tmp_path: Path) -> None:
    met, missed = validate_disaggregation(written(tmp_path, row(), row(id="T2", published=9, provenance="a paper")))
    assert (met.ours, met.passed, met.method) == (8, True, "closed form")
    assert met.case == "attention_us 1, experts_us 1, transfer_us 1, layers 2, micro_batches 1"
    assert (missed.passed, missed.ratio) == (False, pytest.approx(8 / 9))
    assert missed.note == "outside its condition, the paper's form gives 5; a paper"


def test_models_and_accelerators_are_named_or_defined(tmp_path: Path) -> None:
    price = {"quantity": "attention_usd_per_m_tokens", "tolerance": 1e-9}
    # 4 heads of 16, 2 of keys and values: 2 x 64 x (64 + 32 + 32 + 64) weights; 2 x 1000 x 64 elements of cache in
    # 8 bit, with 4 FLOPs each. A second costs 0.001 $, a FLOP 1e-15, a byte 1e-12.
    cost = 1e6 * (128_000 * 1e-12 + 2 * 24_576 * 1e-15)
    case = {"model": "mine", "context_tokens": 1000, "accelerator": "cheap"}
    parts = {"models": {"mine": {"shapes": TINY}}, "accelerators": {"cheap": CHEAP}}
    inline = {"model": {"shapes": TINY}, "context_tokens": 1000, "accelerator": CHEAP}
    path = written(
        tmp_path,
        row(**price, case=case, published=cost),
        row(**price, id="T2", case=inline, published=cost),
        row(id="T3", quantity="kv_bytes", case={"model": "mixtral-8x7b", "context_tokens": 1}, published=65_536),
        row(id="T4", quantity="attention_intensity", case={"model": "step-3"}, published=128),
        row(id="T5", quantity="usd_per_byte", case={"accelerator": "H20"}, published=5.56e-17),
        **parts,
    )
    found = validate_disaggregation(path)
    assert [each.passed for each in found] == [True] * 5
    assert found[0].case == "model mine, context_tokens 1000, accelerator cheap"
    assert found[1].case == "model its own, context_tokens 1000, accelerator its own"


def test_a_definition_of_ones_own_comes_first(tmp_path: Path) -> None:
    changed = row(quantity="usd_per_byte", case={"accelerator": "H20"}, published=1e-12)
    assert validate_disaggregation(written(tmp_path, changed, accelerators={"H20": CHEAP}))[0].passed


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"quantity": "beauty"}, "case T1: unknown quantity 'beauty' (known: step_time_us, micro_batch_gain"),
    ({"quantity": "step_time"}, "did you mean step_time_us?"),
    ({"case": 3}, "case T1: `case` must be an object"),
    ({"case": {**STEP, "layers": 0}}, "case T1: case.layers: must be greater than or equal to 1 (got 0)"),
    ({"case": {**STEP, "layers": 2.5}}, "case.layers: must be a"),
    ({"case": {**STEP, "attention_us": "1"}}, "case.attention_us: must be a"),
    ({"case": {**STEP, "attention_us": 0}}, "case.attention_us: must be greater"),
    ({"case": {**STEP, "attention_us": 1e300}}, "case.attention_us: must be less"),
    ({"case": {**STEP, "transfer": 1}}, "case.transfer: unknown key; did you mean transfer_us? (known: attention_us"),
    ({"case": {key: STEP[key] for key in list(STEP)[1:]}}, "case.attention_us: is missing"),
    ({"published": "x"}, "`published` must be a number"),
    ({"tolerance": -1}, "`tolerance` must be"),
    (
        {"quantity": "kv_bytes", "case": {"model": "gemma", "context_tokens": 1}},
        "case.model: unknown name 'gemma' (known: step-3, deepseek-r1",
    ),
    (
        {"quantity": "usd_per_flop", "case": {"accelerator": "TPU"}},
        "case.accelerator: unknown name 'TPU' (known: H800, H20, A800, 910B)",
    ),
    (
        {"quantity": "usd_per_flop", "case": {"accelerator": {**CHEAP, "gb_per_s": -1}}},
        "case.accelerator.gb_per_s: must",
    ),
    ({"quantity": "ffn_flop", "case": {"model": {"shapes": {**TINY, "layers": 0}}}}, "case.model.shapes.layers: must"),
    (
        {
            "quantity": "fastafd_speedup",
            "case": {
                "baseline_requests": 1,
                "requests": 2,
                "attention_nodes": 1,
                "ffn_nodes": 1,
                "attention_share": 0.7,
                "dense_share": 0.4,
            },
        },
        "attention_share and dense_share must be at most 1 together (got 1.1)",
    ),
    (
        {"quantity": "expert_node_hit", "case": {"experts": 8, "top_k": 9, "expert_nodes": 2}},
        "top_k must be at most experts, 8 (got 9)",
    ),
    (
        {"quantity": "expert_node_hit", "case": {"experts": 8, "top_k": 2, "expert_nodes": 3}},
        "expert_nodes must divide experts, 8 (got 3)",
    ),
]


@pytest.mark.parametrize(("changes", "says"), MALFORMED, ids=[says[:40] for _, says in MALFORMED])
def test_malformed_rows(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = written(tmp_path, row(**changes))
    message = refusal(path)
    assert f"{path}: case T1" in message
    assert says in message


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"models": []}, "models: must be an object of definitions by name"),
        ({"models": {"mine": {}}}, "models.mine.shapes: is missing"),
        ({"models": {"mine": {"shapes": TINY, "query_rank": 0}}}, "models.mine.query_rank: must be"),
        ({"accelerators": {"mine": {**CHEAP, "watts": 3}}}, "accelerators.mine.watts: unknown key"),
        ({"accelerators": {"mine": 3}}, "accelerators.mine: must be"),
    ],
)
def test_malformed_definitions(tmp_path: Path, parts: dict[str, Any], says: str) -> None:
    path = written(tmp_path, row(), **parts)
    assert f"{path}: {says}" in refusal(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", ":1: not valid JSON"),
        ("[]", 'must be an object whose key "cases"'),
        ('{"cases": []}', "at least one case"),
        ('{"cases": [3]}', "case 1: must be an object"),
        ('{"cases": [{"id": "x"}]}', "case x: lacks case, quantity, published, tolerance, tolerance_kind"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="utf-8")
    assert says in refusal(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot read the cases" in refusal(tmp_path / "none.json")


def test_published_rows_stand_in_a_file_of_ones_own_too(tmp_path: Path) -> None:
    rows = [
        row(
            id=case.target.id,
            quantity=case.target.quantity,
            case=dict(case.target.case),
            published=case.target.published,
            tolerance=case.target.tolerance,
            tolerance_kind=case.target.tolerance_kind,
        )
        for case in PUBLISHED.values()
    ]
    assert [case.formula for case in read_disaggregation(written(tmp_path, *rows))] == [
        case.formula for case in PUBLISHED.values()
    ]


@pytest.mark.e2e
def test_the_command_shows_all_figures(tmp_path: Path) -> None:
    done = pimserve(tmp_path, "validate", "disaggregation")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith(f"{len(PUBLISHED)} of {len(PUBLISHED)} figures met")
    found = json.loads(pimserve(tmp_path, "validate", "disaggregation", "--json").stdout)
    assert [each["id"] for each in found] == list(PUBLISHED)


@pytest.mark.e2e
def test_the_command_fails_where_a_figure_is_missed(tmp_path: Path) -> None:
    missed = pimserve(tmp_path, "validate", "disaggregation", "--cases", written(tmp_path, row(published=6)))
    assert missed.returncode == 1
    assert "missed: T1" in missed.stdout
    wrong = pimserve(tmp_path, "validate", "disaggregation", "--cases", written(tmp_path, row(quantity="beauty")))
    assert wrong.returncode == 2
    assert "unknown quantity 'beauty'" in wrong.stderr


def test_the_page_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    assert current(pages_script(), "disaggregation_validation.md", monkeypatch)
