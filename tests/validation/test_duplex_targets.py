"""Files of targets like those of the Duplex paper: what they may say, and which mistakes are told how."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pimserve.cluster.validation.duplex_systems import SYSTEMS
from pimserve.cluster.validation.targets import Finding
from pimserve.cluster.validation.validate_duplex import validate_duplex
from pimserve.errors import InputError
from tests.validation.duplex_target import target


def row(**changes: Any) -> dict[str, Any]:
    one = target()
    keys = ("id", "case", "quantity", "published", "tolerance", "tolerance_kind")
    return {**{key: getattr(one, key) for key in keys}, **changes}


def test_keys_count_and_words_do_not(tmp_path: Path) -> None:
    over = {"statistic": "mean", "models": ["Mixtral"], "batches": [32, 64], "lengths": [256]}
    compared = {"system": "Duplex", "baseline": "GPU"}
    (many,) = validate(tmp_path, row(metric={"kind": "throughput_ratio", **compared, "over": over}, quantity="?"))
    each = [
        validate(tmp_path, row(metric={"kind": "throughput_ratio", **compared}, quantity="?", case=case(batch=batch)))
        for batch in over["batches"]
    ]
    assert many.ours == pytest.approx(sum(found.ours for (found,) in each) / 2)
    assert many.quantity == "?"


def case(**changes: Any) -> dict[str, Any]:
    return {**target().case, **changes}


def validate(folder: Path, *rows: Any) -> list[Finding]:
    path = folder / "targets.json"
    path.write_text(json.dumps({"targets": list(rows)}), encoding="utf-8")
    return validate_duplex(path)


SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("throughput ratio", case(system="Duplex+PE", batch=96, Lin=700, Lout=300)),
    ("throughput ratio", case(model="Grok1", system="2xGPU", batch=128, Lin=4096, Lout=4096)),
    ("throughput ratio", case(system="BankGroup-PIM")),
    ("throughput ratio", case(cluster="1 node x 8 devices")),
    ("throughput ratio without limit", case(system="hetero, weights duplicated", Lin=8192, Lout=4096, batch=128)),
    ("energy per token ratio", case(model="GLaM", batch=128)),
    ("share of energy: FC_comp", case(system="GPU")),
    ("share of stage time: Comm", case(stage="mixed")),
    ("share of decoding-only stages", case(batch=64)),
    ("TBT_p90 ratio", case(model="GLaM", batch=16)),
    ("T2FT_p99 ratio", case(system="Duplex-Split", baseline="GPU")),
    ("E2E_mean ratio", case(system="hetero")),
    ("TBT_p90 over Duplex at QPS 6", case(batch=128, Lin=512, Lout=128, qps=9)),
    ("highest sustained req/s lies in", case(batch=16)),
    ("batch that fits (requests)", case(model="OPT", batch=512)),
    ("EDAP normalised to the worst of the three", {"unit": "Logic-PIM", "opb": 2}),
    ("Op/B", case(operator="FC", stage="decoding-only")),
]


@pytest.mark.medium
@pytest.mark.parametrize(("quantity", "setting"), SETTINGS, ids=[f"{q}-{i}" for i, (q, _) in enumerate(SETTINGS)])
def test_other_settings_have_values(tmp_path: Path, quantity: str, setting: dict[str, Any]) -> None:
    (found,) = validate(tmp_path, row(quantity=quantity, case=setting))
    assert math.isfinite(found.ours)
    assert found.ours > 0
    assert found.passed == (abs(found.ours / 2.0 - 1) <= 0.1)
    assert found.passed or found.note


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("min throughput Duplex+PE+ET/GPU over fig.11 grid", 1.2, 2.0),
        ("Grok1: mean throughput 2xGPU/GPU", 1.3, 1.7),
        ("mean energy reduction Grok1", 0.2, 0.35),
        ("GLaM b64: mean reduction of p99 TBT at 512, Duplex+PE+ET vs 2xGPU", 0.05, 0.25),
        ("Mixtral b32: up-to throughput Bank-PIM/GPU", 1.8, 2.3),
        ("max T2FT speed-up Duplex+PE+ET vs GPU", 1.2, 2.6),
    ],
)
def test_other_aggregates_are_read_by_their_words(tmp_path: Path, text: str, low: float, high: float) -> None:
    (found,) = validate(tmp_path, row(quantity=text, case={"scope": "aggregate"}))
    assert low < found.ours < high


@pytest.mark.parametrize(
    ("kind", "published", "tolerance", "passed", "ratio"),
    [
        ("rel", 2.0, 0.1, True, 2.08 / 2.0),
        ("rel", 1.0, 0.1, False, 2.08),
        ("abs", 2.0, 0.2, True, 2.08 / 2.0),
        ("abs", 2.0, 0.01, False, 2.08 / 2.0),
        ("interval", [2.0, 3.0], 0.0, True, 1.0),
        ("interval", [2.2, 3.0], 0.06, True, 2.08 / 2.2),
        ("interval", [1.0, 1.5], 0.06, False, 2.08 / 1.5),
    ],
)
def test_tolerances(tmp_path: Path, kind: str, published: Any, tolerance: float, passed: bool, ratio: float) -> None:
    (found,) = validate(tmp_path, row(tolerance_kind=kind, published=published, tolerance=tolerance))
    assert found.passed == passed
    assert found.ratio == pytest.approx(ratio, rel=0.01)
    assert found.passed or "no reason is known" in found.note


def test_findings_keep_the_order_and_say_how(tmp_path: Path) -> None:
    fits = {"model": "OPT", "batch": 64, "Lin": 1024, "Lout": 1024, "system": "GPU"}
    found = validate(
        tmp_path,
        row(id="b", quantity="batch that fits (requests)", case=fits, published=1),
        row(id="a"),
        row(id="F8-x", quantity="EDAP normalised to the worst of the three", case={"unit": "Bank-PIM", "opb": 64}),
    )
    assert [each.id for each in found] == ["b", "a", "F8-x"]
    assert [each.method for each in found] == ["capacity", "closed form", "area model"]
    assert "not published" in found[0].note
    assert "fitted" in found[2].note
    assert found[1].case == "Mixtral, batch 32, Lin 256 Lout 256, Duplex / GPU"


def test_a_batch_that_does_not_fit_shrinks_and_says_so(tmp_path: Path) -> None:
    at = {"model": "OPT", "Lin": 1024, "Lout": 1024, "system": "Duplex", "baseline": "GPU"}
    large, fitting = validate(
        tmp_path, row(id="F14-a", case={**at, "batch": 500}), row(id="F14-b", case={**at, "batch": 42})
    )
    assert large.ours == pytest.approx(fitting.ours)
    assert "holds 42 of 500" in large.note
    assert "holds" not in fitting.note


def test_keys_without_meaning_are_named(tmp_path: Path) -> None:
    (found,) = validate(tmp_path, row(case=case(colour="green")))
    assert "colour" in found.note


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", ":1: not valid JSON"),
        ("[]", 'must be an object whose key "targets"'),
        ('{"targets": []}', "at least one target"),
        ('{"targets": {"id": 1}}', 'must be an object whose key "targets"'),
        ('{"targets": [3]}', "target 1: must be an object"),
        ('{"targets": [{}]}', "target 1: `id` must be a text"),
        ('{"targets": [{"id": "x"}]}', "target x: lacks case, quantity, published, tolerance, tolerance_kind"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        validate_duplex(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the targets"):
        validate_duplex(tmp_path / "none.json")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        validate_duplex(binary)


AGGREGATE = {"scope": "aggregate"}
MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"tolerance_kind": "about"}, "unknown tolerance_kind 'about' (known: rel, abs, interval)"),
    ({"tolerance": -1}, "`tolerance` must be a number of at least 0"),
    ({"tolerance": True}, "`tolerance` must be"),
    ({"published": "two"}, "`published` must be a number"),
    ({"published": 0}, "must not be 0"),
    ({"published": [1, 2]}, "`published` must be a number"),
    ({"published": 2, "tolerance_kind": "interval"}, "must be [low, high]"),
    ({"published": [3, 2], "tolerance_kind": "interval"}, "0 < low <= high"),
    ({"case": 3}, "`case` must be an object"),
    ({"quantity": None}, "`quantity` must be a text"),
    ({"quantity": "beauty"}, "unknown quantity 'beauty' (known: throughput ratio; energy per token ratio"),
    ({"quantity": "TBT_p37 ratio"}, "unknown quantity"),
    ({"quantity": "share of energy: Love"}, "unknown part 'Love' (known: FC_dram"),
    ({"quantity": "share of stage time: MoE"}, "needs case.stage"),
    ({"quantity": "TBT_p50 over GPU at QPS 4", "case": case(qps=4)}, "'Duplex at QPS n'"),
    ({"quantity": "TBT_p50 over Duplex at QPS 4"}, "needs case.qps"),
    ({"quantity": "Op/B", "case": case()}, "needs its operator"),
    ({"quantity": "Op/B: MoE", "case": case(model="OPT")}, "OPT has no MoE"),
    ({"quantity": "EDAP normalised to the worst of the three", "case": {"unit": "CPU", "opb": 1}}, "unknown case.unit"),
    ({"quantity": "EDAP normalised to the worst of the three", "case": {"unit": "Bank-PIM"}}, "case.opb"),
    ({"quantity": "energy per token ratio", "case": case(system="Duplex-Split")}, "not worked out"),
    ({"quantity": "E2E_p99 ratio", "case": case(system="Duplex-Split")}, "not worked out"),
    ({"case": case(model="Gemma")}, "unknown case.model 'Gemma' (known: Mixtral, GLaM, Grok1, OPT, Llama3)"),
    ({"case": case(system="TPU")}, "case.system: unknown system 'TPU' (known: " + ", ".join(SYSTEMS)),
    ({"case": case(baseline="TPU")}, "case.baseline: unknown system"),
    ({"case": case(cluster="many")}, "case.cluster must read like '2 nodes x 8 devices'"),
    ({"case": case(cluster="1 node x 3 devices")}, "3 does not divide"),
    ({"case": case(cluster="1 node x 1 devices")}, "holds no request"),
    ({"case": case(batch=0)}, "case.batch must be a whole number"),
    ({"case": case(Lin="long")}, "case.Lin must be a whole number"),
    ({"case": case(Lout=1)}, "case.Lout must be a whole number from 2"),
    ({"case": case(stage="first")}, "unknown case.stage 'first' (known: decoding-only, mixed)"),
    ({"case": case(qps=-1)}, "case.qps must be a number above 0"),
    ({"case": AGGREGATE, "quantity": "mean beauty"}, "is not understood (known: <up-to"),
    ({"case": AGGREGATE, "quantity": "throughput Duplex/GPU"}, "is not understood"),
    ({"case": AGGREGATE, "quantity": "mean throughput TPU/GPU"}, "is not understood"),
    ({"case": AGGREGATE, "quantity": "mean energy reduction Duplex-Split/GPU"}, "not worked out for Duplex-Split"),
    ({"metric": 3}, "`metric` must be an object"),
    ({"metric": {}}, "metric.kind: is missing"),
    ({"metric": {"kind": "beauty"}}, "metric.kind: must be 'throughput_ratio', 'energy_ratio'"),
    ({"metric": {"kind": "throughput_ratio", "systems": "GPU"}}, "metric.systems: unknown key; did you mean system?"),
    ({"metric": {"kind": "throughput_ratio", "system": "TPU"}}, "metric.system: must be 'GPU', '2xGPU'"),
    ({"metric": {"kind": "throughput_ratio", "nodes": 2}}, "nodes and devices_per_node go together"),
    ({"metric": {"kind": "energy_share"}}, "energy_share needs part"),
    ({"metric": {"kind": "energy_share", "part": "Love"}}, "unknown part 'Love' (known: FC_dram"),
    ({"metric": {"kind": "op_per_byte", "part": "Love"}}, "unknown part 'Love' (known: FC, MoE"),
    ({"metric": {"kind": "latency_ratio", "latency": "TBT"}}, "latency_ratio needs statistic"),
    ({"metric": {"kind": "energy_reduction"}}, "energy_reduction needs over"),
    ({"metric": {"kind": "edap", "over": {"statistic": "max", "models": ["OPT"], "batches": [1]}}}, "over goes with"),
]


@pytest.mark.parametrize(("changes", "says"), MALFORMED, ids=[says[:30] for _, says in MALFORMED])
def test_mistakes_name_file_target_and_what_is_allowed(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        validate(tmp_path, row(id="fine", quantity="share of decoding-only stages"), row(**changes))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'targets.json'}: target T1: ")
    assert says in message


def test_an_id_given_twice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="target T1: the id is given twice"):
        validate(tmp_path, row(), row())
