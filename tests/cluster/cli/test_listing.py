"""The catalogue as `pimserve models` and `pimserve devices` show it."""

import io
import json

import pytest

from pimserve.cluster.cli.listing import describe_device, describe_model, device_list, entry_page, model_list
from pimserve.cluster.cli.terminal import write
from pimserve.device_models.catalogue import device_names, load_model, model_names

MODELS = [describe_model(name) for name in model_names()]
DEVICES = [describe_device(name) for name in device_names()]


def printed(what):
    file = io.StringIO()
    write(what, file)
    return file.getvalue()


@pytest.mark.parametrize(("table", "entries"), [(model_list(MODELS), MODELS), (device_list(DEVICES), DEVICES)])
def test_lists_show_every_entry_whole_with_its_sources(table, entries):
    text = printed(table)
    assert max(map(len, text.splitlines())) <= 80
    rows, _, sources = text.partition("\nsources\n")
    sources = " ".join(sources.split())
    assert {line.split()[0] for line in rows.splitlines() if not line.startswith((" ", "model ", "device "))} == {
        entry["name"] for entry in entries
    }
    for entry in entries:
        assert entry["sources"]
        # A line may break anywhere in a long word, so blanks do not count.
        assert f"{entry['name']}{'; '.join(entry['sources'])}".replace(" ", "") in sources.replace(" ", "")


def test_key_figures_of_a_model():
    line = next(line for line in printed(model_list(MODELS)).splitlines() if line.startswith("mixtral-8x7b "))
    assert line.split() == ["mixtral-8x7b", "46.7", "B", "12.9", "B", "93.4", "GB", "131", "kB", "32", "2/8", "32,768"]


def test_key_figures_of_a_device():
    line = next(line for line in printed(device_list(DEVICES)).splitlines() if line.startswith("duplex "))
    assert line.split() == ["duplex", "duplex", "903", "120", "989", "85.9", "GB", "3,352", "450"]


def test_what_does_not_apply_to_a_device_is_a_dash():
    table = printed(device_list(DEVICES)).partition("\nsources\n")[0]
    rows = {line.split()[0]: line.split() for line in table.splitlines()[2:] if line}
    assert rows["aimc-realistic"] == ["aimc-realistic", "aimc", "718", "23.2", "-", "512", "GB", "614", "450"]
    assert rows["b200"] == ["b200", "gpu", "-", "192", "2,250", "192", "GB", "8,000", "900"]


def test_a_device_is_one_line():
    rows = printed(device_list(DEVICES)).partition("\nsources\n")[0]
    assert [line.split()[0] for line in rows.splitlines()[2:] if line] == [entry["name"] for entry in DEVICES]


def test_derived_figures_of_devices():
    derived = {entry["name"]: entry["derived"] for entry in DEVICES}
    assert derived["h100"]["area_mm2"] == 814
    assert derived["h100"]["tflop_per_s_16_bit"] == 989.4
    assert derived["duplex"]["units"] == ["xpu", "logic_pim"]
    chip = derived["aimc-realistic"]
    assert chip["units"] == ["tiles", "busiest_tile", "digital", "attention", "dram"]
    assert chip["weight_capacity"] == 512 * 64 * 512**2
    assert (chip["area_mm2"], chip["passive_w"]) == (pytest.approx(717.5, abs=0.1), pytest.approx(23.2, abs=0.1))


@pytest.mark.parametrize("entry", [*MODELS, *DEVICES], ids=lambda entry: entry["name"])
def test_page_shows_every_figure_and_source(entry):
    text = printed(entry_page(entry))
    assert max(map(len, text.splitlines())) <= 80
    joined = "".join(text.split())
    assert joined.startswith(f"{entry['name']}:{entry['title']}".replace(" ", ""))
    for source in entry["sources"]:
        assert source.replace(" ", "") in joined
    for key in entry["derived"]:
        assert f"\n  {key} " in text


def test_derived_figures_are_the_models_own():
    model = load_model("deepseek-v3")
    assert describe_model("deepseek-v3")["derived"]["parameters"] == model.parameters
    text = printed(entry_page(describe_model("deepseek-v3")))
    assert f"{model.parameters:,}" in text
    assert " attention.kv_lora_rank " in text


def test_descriptions_are_strict_json():
    for entry in (*MODELS, *DEVICES):
        assert json.loads(json.dumps(entry, allow_nan=False)) == entry
