"""Scenarios over the wire: as on the command line, but for the server's files and for bombs."""

import tempfile

import pytest
import yaml

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import scenario_digest
from pimserve.cluster.service.received_scenario import as_yaml, read_scenario
from pimserve.errors import InputError
from pimserve.loadgen.traces import load_trace

TRACE = "arrival_s,input_tokens,output_tokens\n0,10,5\n1,20,6\n"


@pytest.fixture
def traces(tmp_path):
    folder = tmp_path / "traces"
    folder.mkdir()
    (folder / "small.csv").write_text(TRACE)
    (tmp_path / "secret.csv").write_text(TRACE)
    (folder / "link.csv").symlink_to(tmp_path / "secret.csv")
    return folder


def refused(text, overrides=(), trace="", traces=None):
    with pytest.raises(InputError) as caught:
        read_scenario(text, overrides, trace, traces)
    return str(caught.value)


def test_a_scenario_is_what_it_is_on_the_command_line(tmp_path):
    text = "name: mine\nworkload: {num_requests: 7}\n"
    file = tmp_path / "s.yaml"
    file.write_text(text)
    prepared = read_scenario(text, ["cluster.replicas=2"], "", None)
    scenario, pool = prepared.scenario, prepared.pools[0]
    assert scenario == load_scenario(file, ["cluster.replicas=2"])
    assert pool.kv_capacity_tokens > 0
    assert read_scenario("", [], "", None).scenario == load_scenario(None)


def test_what_is_stored_runs_the_same(tmp_path):
    scenario = read_scenario(
        "cluster: {device: h100}\nslo: {preset: mlperf/mixtral-8x7b/server}\n", [], "", None
    ).scenario
    file = tmp_path / "s.yaml"
    file.write_text(as_yaml(scenario))
    assert scenario_digest(load_scenario(file)) == scenario_digest(scenario)


def test_mistakes_name_their_place_and_not_the_servers_files():
    assert refused("cluster: {replicas: 0}") == "cluster.replicas: must be greater than 0 (got 0)"
    assert refused("a: [\n") == "scenario:2: not valid YAML: did not find expected node content"
    assert refused("[]") == "scenario: must be a mapping of keys to values"
    assert "unknown model 'nope'" in refused("model: nope")
    assert refused("", ["cluster.tensor_parallel=64"])  # parts that do not go together are found before the run


def test_traces_lie_below_the_folder_for_traces(traces, tmp_path):
    for path in ("small.csv", str(traces / "small.csv")):
        scenario = read_scenario("", [], f"csv:{path}", traces).scenario
        assert scenario.workload.trace.path == str(traces / "small.csv")
    text = yaml.dump({"workload": {"trace": {"format": "csv", "path": "small.csv"}}})
    assert read_scenario(text, [], "", traces).scenario.workload.trace.path == str(traces / "small.csv")
    assert refused(text) == "workload.trace.path: this server reads no traces: it was started without --traces"


@pytest.mark.parametrize("path", ["../secret.csv", "link.csv", "none.csv", "/etc/passwd", ".", "a\0b", "x" * 5000])
def test_nothing_is_learned_of_other_files(traces, path):
    text = yaml.dump({"workload": {"trace": {"format": "csv", "path": path}}})
    message = refused(text, traces=traces)
    assert message.startswith("workload.trace.path: no file ")
    assert message.endswith(" below the folder of the server's --traces")


def test_a_folder_of_traces_is_one_and_its_links_lead_nowhere(traces, tmp_path):
    (traces / "day").mkdir()
    for part in range(2):
        (traces / "day" / f"{part}.csv").write_text(f"arrival_s,input_tokens,output_tokens\n{part},5,5\n")
    (traces / "day" / "2.csv").symlink_to(tmp_path / "secret.csv")
    scenario = read_scenario("", [], "day", traces).scenario
    assert load_trace(scenario.workload.trace).rows_read == 2
    assert yaml.safe_load(as_yaml(scenario))["workload"]["trace"]["format"] == "csv"


def test_absolute_paths_elsewhere_are_as_if_not_there(traces, tmp_path):
    assert "no file" in refused("", [], f"csv:{tmp_path / 'secret.csv'}", traces)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 100_000,
        "a: " + "{a: " * 100_000,
        "- " * 100_000,
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
        "a: [" + "1, " * 250_000 + "1]",
    ],
)
def test_bombs_are_refused_before_they_are_built(text):
    assert refused(text) == "scenario: is nested deeper than 32 levels, or has over 200,000 values"
    if len(text) < 1_000_000:
        assert refused("", [f"workload={text}"])


def test_anchors_are_allowed():
    text = "workload: &w {num_requests: 5}\nrun: {seed: 3}\n"
    assert read_scenario(text, [], "", None).scenario.run.seed == 3


def test_no_file_is_written_that_a_killed_check_would_leave_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert read_scenario("run: {seed: 3}", [], "", None).scenario.run.seed == 3
    assert refused("model: mine.yaml", [], "").startswith("model: 'mine.yaml' is a file, which is not read here")
    assert refused("a: [", [], "").startswith("scenario:2: not valid YAML")
