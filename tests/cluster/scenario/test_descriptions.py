"""Models and devices that are files of the user's own."""

import io
import json
from pathlib import Path

import pytest
import yaml

from pimserve.cluster.cli.listing import describe_device, describe_model, entry_page
from pimserve.cluster.cli.terminal import write
from pimserve.cluster.scenario.document import Scenario, load_scenario
from pimserve.cluster.scenario.prepared import prepare, scenario_digest
from pimserve.cluster.service.received_scenario import read_scenario
from pimserve.cluster.sweep.grid import load_grid
from pimserve.device_models.catalogue import load_model, model_names, model_of
from pimserve.errors import InputError
from tests.cluster.documents import run
from tests.command import pimserve

# Llama-3.1-8B with other names; 8,030,261,248 parameters.
MODEL = """\
layers: 32
hidden: 4096
vocab: 128256
attention: {kind: gqa, heads: 32, kv_heads: 8, head_dim: 128}
ffn: {intermediate: 14336}
max_model_len_tokens: 131072
dense_dtype: bf16
kv_dtype: bf16
published: {parameters: 8.03e9}
"""
DEVICE = "preset: h100\nmemory_gb: 60\n"
TRAFFIC = (
    "workload: {num_requests: 5, arrival: {process: constant, rate_per_s: 5}, "
    "lengths: {input: {kind: fixed, tokens: 50}, output: {kind: fixed, tokens: 5}}}\n"
)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The scenario's folder, and the working folder."""
    for name in ("scenarios", "working"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "working")
    return tmp_path / "scenarios", tmp_path / "working"


def scenario(folder: Path, text: str) -> Path:
    path = folder / "s.yaml"
    path.write_text(text + TRAFFIC)
    return path


@pytest.mark.parametrize("beside", [True, False], ids=["beside the scenario", "in the working folder"])
def test_a_model_and_a_device_of_files(folders: tuple[Path, Path], tmp_path: Path, beside: bool) -> None:
    here = folders[0] if beside else folders[1]
    (here / "mine.yaml").write_text(MODEL)
    (here / "chip.yml").write_text(DEVICE)
    path = scenario(folders[0], "model: mine.yaml\ncluster: {device: chip.yml, devices_per_node: 1}\n")
    loaded = load_scenario(path)
    model, device = loaded.load_model(), loaded.load_device()
    assert (model.name, model.parameters) == ("mine", 8_030_261_248)
    assert device.spec.name == "chip"
    summary = run(prepare(loaded), tmp_path / "r")
    assert (summary["model"], summary["device"]) == ("mine", "chip")
    resolved = yaml.safe_load((tmp_path / "r" / "scenario.yaml").read_text())
    assert resolved["model"] == model.model_dump(mode="json", exclude_none=True)
    assert resolved["cluster"]["device"]["memory_gb"] == 60
    (here / "mine.yaml").unlink()
    assert (
        run(prepare(load_scenario(tmp_path / "r" / "scenario.yaml")), tmp_path / "again")["digest"] == summary["digest"]
    )


def test_the_scenarios_folder_comes_first(folders: tuple[Path, Path]) -> None:
    for number, folder in enumerate(folders):
        (folder / "mine.yaml").write_text(
            MODEL.replace("layers: 32", f"layers: {31 + number}").replace("8.03e9", "8e9")
        )
        (folder / "mine.yaml").write_text((folder / "mine.yaml").read_text().replace("{parameters: 8e9}", "null"))
    assert load_scenario(scenario(folders[0], "model: mine.yaml\n")).load_model().layers == 31
    assert load_scenario(None, ["model=mine.yaml"]).load_model().layers == 32
    assert load_scenario(None, [f"model={folders[0] / 'mine.yaml'}"]).load_model().layers == 31


def test_a_file_may_be_changed_as_a_preset_may(folders: tuple[Path, Path]) -> None:
    (folders[1] / "mine.yaml").write_text(MODEL)
    (folders[1] / "chip.yaml").write_text(DEVICE + "name: chip-of-mine\n")
    by_key = load_scenario(None, ["model=mine.yaml", "model.kv_dtype=fp8", "cluster.device=chip.yaml"])
    by_mapping = load_scenario(None, ["model={preset: mine.yaml, kv_dtype: fp8}", "cluster.device=chip.yaml"])
    assert by_key == by_mapping
    assert by_key.load_model().kv_bytes_per_token == load_model("llama-3.1-8b").kv_bytes_per_token / 2
    changed = load_scenario(None, ["cluster.device={preset: chip.yaml, memory_gb: 70}"]).load_device()
    assert (changed.spec.name, changed.spec.model_dump()["memory_gb"]) == ("chip-of-mine", 70)


def test_pools_may_have_devices_of_files(folders: tuple[Path, Path]) -> None:
    (folders[1] / "chip.yaml").write_text(DEVICE)
    pools = "cluster.pools={prefill: {device: chip.yaml}, decode: {device: h100}}"
    loaded = load_scenario(None, ["cluster.device=h100", pools])
    assert [loaded.of_pool(name).load_device().spec.name for name in loaded.pools] == ["chip", "h100"]


REFUSED = {
    "model=none.yaml": "model: no such file: {scenarios}/none.yaml, nor {working}/none.yaml",
    "cluster.device=none.yml": "cluster.device: no such file: {scenarios}/none.yml, nor {working}/none.yml",
    "cluster.device={preset: none.yml}": "cluster.device: no such file: {scenarios}/none.yml, nor {working}/none.yml",
    "cluster.pools={decode: {device: none.yml}}": "cluster.pools.decode.device: no such file: ",
    "model=folder.yaml": "{working}/folder.yaml: is a folder; a description is a YAML file",
    "model=list.yaml": "{working}/list.yaml: must be a mapping of keys to values",
    "model=broken.yaml": "{working}/broken.yaml:2: not valid YAML: ",
    "model=binary.yaml": "{working}/binary.yaml: is not UTF-8 text (byte 0); a description is a YAML file",
    "model=nested.yaml": "{working}/nested.yaml: builds on 'list.yaml'; a file may build on a preset of the catalogue",
    "model=empty.yaml": "model.layers: is missing\nmodel.hidden: is missing",
    "model=unknown.yaml": "model.layers: is missing\nmodel.layer: unknown key; did you mean layers?",
    "cluster.device=kind.yaml": "cluster.device: needs `preset` (one of a100,",
    'model="a\\0.yaml"': "model: no such file: ",
    f"model={'x' * 5000}.yaml": "model: 'xxx",
}


@pytest.mark.parametrize("override", REFUSED, ids=[each[:40] for each in REFUSED])
def test_what_is_wrong_with_a_file_is_said(folders: tuple[Path, Path], override: str) -> None:
    scenarios, working = folders
    (working / "folder.yaml").mkdir()
    for name, text in (
        ("list.yaml", "[1]"), ("broken.yaml", "a: 1\n\tb: 2\n"), ("nested.yaml", "preset: list.yaml\n"),
        ("empty.yaml", "{}"), ("unknown.yaml", MODEL.replace("layers", "layer")), ("kind.yaml", "memory_gb: 3\n"),
    ):  # fmt: skip
        (working / name).write_text(text)
    (working / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError) as refused:
        load_scenario(scenario(scenarios, "name: s\n"), [override]).resolved()
    expected = REFUSED[override].replace("{scenarios}", str(scenarios)).replace("{working}", str(working))
    assert str(refused.value).startswith(expected)


def test_a_grid_may_have_files(folders: tuple[Path, Path]) -> None:
    (folders[1] / "chip.yaml").write_text(DEVICE)
    grid = load_grid(None, ["model=llama-3.1-8b"], ["cluster.device=duplex,chip.yaml"], 1)
    assert [point.name for point in grid.points] == ["device=duplex", "device=chip.yaml"]
    sent = Scenario.model_validate(json.loads(grid.points[1].runs[0].scenario.model_dump_json()))
    assert sent.load_device().spec.name == "chip"
    assert scenario_digest(sent) == grid.points[1].runs[0].digest


@pytest.mark.parametrize("text", ["model: mine.yaml\n", "model: {preset: mine.yaml}\n"])
def test_a_server_reads_no_files(folders: tuple[Path, Path], text: str) -> None:
    (folders[1] / "mine.yaml").write_text(MODEL)
    message = "model: 'mine.yaml' is a file, which is not read here: put what it says into the scenario itself"
    for given, overrides in ((text, []), ("", ["model=mine.yaml"])):
        with pytest.raises(InputError) as refused:
            read_scenario(given, overrides, "", None)
        assert str(refused.value) == message
    with pytest.raises(InputError, match=r"cluster\.device: 'chip\.yaml' is a file, which is not read here"):
        read_scenario("cluster: {device: chip.yaml}", [], "", None)


# --- published sizes -------------------------------------------------------------------------------------------------


def test_published_parameters_are_held_against_the_shapes(folders: tuple[Path, Path]) -> None:
    (folders[1] / "mine.yaml").write_text(MODEL.replace("8.03e9", "7e9"))
    with pytest.raises(InputError) as refused:
        load_scenario(None, ["model=mine.yaml"]).load_model()
    assert str(refused.value) == (
        "model: published.parameters is 7,000,000,000, but the shapes have 8,030,261,248, which is +14.72 %; 1 % is "
        "allowed (its relative tolerance)"
    )
    wider = MODEL.replace("8.03e9", "7.9e9, relative_tolerance: 0.02")
    (folders[1] / "mine.yaml").write_text(wider)
    assert load_scenario(None, ["model=mine.yaml"]).load_model().parameters == 8_030_261_248


@pytest.mark.parametrize("key", ["parameters", "active_parameters"])
@pytest.mark.parametrize("name", [name for name in model_names() if load_model(name).published is not None])
def test_no_model_of_the_catalogue_may_be_off_by_more_than_its_tolerance(name: str, key: str) -> None:
    published = load_model(name).published
    assert published is not None
    figure = getattr(published, key)
    if figure is None:
        return
    for factor in (0.9, 1.1):
        with pytest.raises(InputError, match=rf"model: published\.{key} is .*, but the shapes have "):
            model_of({"preset": name, "published": {key: figure * factor}})


def test_what_was_published_does_not_hold_for_other_shapes() -> None:
    assert model_of({"preset": "llama-3.1-8b", "layers": 2}).published is None
    assert model_of("llama-3.1-8b").published is not None


# --- what is derived -------------------------------------------------------------------------------------------------


def test_what_follows_from_a_model_and_a_device_is_shown(folders: tuple[Path, Path]) -> None:
    (folders[1] / "mine.yaml").write_text(MODEL)
    (folders[1] / "chip.yaml").write_text(DEVICE)
    model, device = describe_model("mine.yaml"), describe_device("chip.yaml")
    assert model["derived"] == describe_model("llama-3.1-8b")["derived"]
    assert (device["name"], device["derived"]["memory_gb"]) == ("chip", 60)
    for entry in (model, device):
        file = io.StringIO()
        write(entry_page(entry), file)
        text = file.getvalue()
        assert text.startswith(f"{entry['name']}")
        for key in entry["derived"]:
            assert key in text
    assert "none given" in text or device["sources"]


@pytest.mark.e2e
def test_the_commands_show_files(folders: tuple[Path, Path]) -> None:
    (folders[1] / "mine.yaml").write_text(MODEL)

    shown = pimserve(folders[1], "models", "mine.yaml", "--json")
    assert json.loads(shown.stdout)["derived"]["parameters"] == 8_030_261_248
    assert "8,030,261,248" in pimserve(folders[1], "models", "mine.yaml").stdout
    missing = pimserve(folders[1], "devices", "chip.yaml")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == f"error: device: no such file: {folders[1]}/chip.yaml\n"


# --- traces ----------------------------------------------------------------------------------------------------------


def test_a_trace_is_looked_for_beside_the_scenario_first(folders: tuple[Path, Path]) -> None:
    for number, folder in enumerate(folders):
        (folder / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n" + "0,1,1\n" * (number + 1))
    path = folders[0] / "s.yaml"
    path.write_text("workload: {trace: {format: csv, path: t.csv}}\n")
    assert run(prepare(load_scenario(path)), folders[1] / "r")["requests"]["total"] == 1
    assert run(prepare(load_scenario(None, trace="csv:t.csv")), folders[1] / "again")["requests"]["total"] == 2
