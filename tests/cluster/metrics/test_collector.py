"""What the client library collects from runs, and writes."""

import shutil
import subprocess

import numpy as np
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString

from pimserve.cluster.metrics.collector import registry
from pimserve.cluster.metrics.families import FAMILIES
from pimserve.cluster.metrics.run_metrics import metrics_of
from pimserve.cluster.metrics.vllm import VLLM_FAMILIES, as_vllm
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare


def metrics(replicas, run_id="r", **options):
    scenario = load_scenario(None, [f"cluster.replicas={replicas}", "slo.ttft_s=0.3"])
    return metrics_of(prepare(scenario), run_id, **options)


def filled(found):
    """The same with all kinds of values."""
    rng = np.random.default_rng(3)
    for part in (found.values, found.sums):
        for values in part.values():
            values[:] = rng.exponential(1e3, values.shape)
    for counts in found.counts.values():
        counts[:] = rng.integers(0, 2**40, counts.shape)
    found.values["pimserve_run_info"][:] = 1  # as of any info
    return found


def text_of(*runs, families=FAMILIES):
    return generate_latest(registry(families, lambda: runs)).decode()


def test_every_value_is_written():
    found = filled(metrics(2))
    parsed = {family.name: family for family in text_string_to_metric_families(text_of(found))}
    for family in FAMILIES:
        name = family.name.removesuffix("_total")
        for index, key in enumerate(found.layout.keys[family.name]):
            labels = dict(zip(family.labels, key, strict=True))
            mine = [
                sample
                for sample in parsed[name].samples
                if {label: value for label, value in sample.labels.items() if label != "le"} == labels
            ]
            if family.kind != "histogram":
                assert [sample.value for sample in mine] == [found.values[family.name][index]]
                continue
            buckets = {sample.labels["le"]: sample.value for sample in mine if sample.name.endswith("_bucket")}
            counts = found.counts[family.name][index]
            assert list(buckets) == [*(floatToGoString(bound) for bound in found.layout.bounds[family.name]), "+Inf"]
            assert list(buckets.values()) == np.cumsum(counts).tolist()
            rest = {sample.name: sample.value for sample in mine if not sample.name.endswith("_bucket")}
            sums = {f"{family.name}_sum": found.sums[family.name][index], f"{family.name}_count": counts.sum()}
            assert rest == sums


@pytest.mark.medium
def test_a_replica_more_is_few_series_more_once_histograms_are_merged():
    series = {n: len([line for line in text_of(metrics(n)).splitlines() if line[0] != "#"]) for n in (8, 9, 64)}
    apart = len([line for line in text_of(metrics(9, per_engine=True)).splitlines() if line[0] != "#"])
    assert series[9] < series[64] < series[8] / 2
    assert apart == pytest.approx(series[8] * 9 / 8, rel=0.01)


@pytest.mark.medium
@pytest.mark.parametrize("families", [FAMILIES, VLLM_FAMILIES])
def test_the_help_of_merged_histograms_says_so_and_how_to_have_them_apart(families):
    runs = {"few": metrics(2), "many": metrics(9), "apart": metrics(9, per_engine=True)}
    for name in ("few", "many", "apart"):
        run = runs[name] if families is FAMILIES else as_vllm(runs[name])
        for family in text_string_to_metric_families(text_of(run, families=families)):
            noted = "Merged: engine=all" in family.documentation and "--metrics-per-engine" in family.documentation
            assert noted == (name == "many" and family.type == "histogram"), family.name


def test_the_help_of_several_runs_says_it_if_one_of_them_is_merged():
    text = text_of(metrics(2, "few"), metrics(9, "many"))
    step = next(f for f in text_string_to_metric_families(text) if f.name == "pimserve_step_tokens")
    assert "Merged: engine=all" in step.documentation
    assert {(sample.labels["run_id"], sample.labels["engine"]) for sample in step.samples} == {
        ("few", "0"),
        ("few", "1"),
        ("many", "all"),
    }


def test_promtool_has_nothing_to_say_of_merged_histograms():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    command = [promtool, "check", "metrics"]
    done = subprocess.run(command, input=text_of(filled(metrics(9))), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_not_a_number_is_left_out():
    run = metrics(2)
    run.values["pimserve_requests_waiting"][0] = np.nan
    waiting = [line for line in text_of(run).splitlines() if line.startswith("pimserve_requests_waiting{")]
    assert len(waiting) == 1
    assert 'engine="1"' in waiting[0]
