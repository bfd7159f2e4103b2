"""`pimserve trace`: what is printed and written, and what is said of mistakes."""

import json

import pytest

from tests.command import pimserve

OWN = "arrival_s,input_tokens,output_tokens\n"


@pytest.fixture
def folder(tmp_path):
    rows = "".join(f"{t * t / 10},{100 + t},{1 + t % 7}\n" for t in range(50))
    (tmp_path / "own.csv").write_text(OWN + rows)
    blocks = [[1, 2], [1, 2, 3], [1, 4]]
    lines = [
        {"timestamp": 1000 * n, "input_length": 600 * len(ids), "output_length": 5, "hash_ids": ids}
        for n, ids in enumerate(blocks)
    ]
    (tmp_path / "mooncake.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return tmp_path


def test_stats_are_printed(folder):
    done = pimserve(folder, "trace", "stats", "mooncake.jsonl", "--capacity", "1", "--capacity", "2")
    assert done.returncode == 0, done.stderr
    for shown in ("3 requests of 3 rows read", "requests/s", "index of dispersion, 60 s", "Spearman", "different ones"):
        assert shown in done.stdout
    shown = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert {"1 0 %", "2 24.4 %", "room for all 36.6 %", "n 3 3"} <= set(shown)
    assert "…" not in done.stdout


def test_json_and_a_window(folder):
    done = pimserve(folder, "trace", "stats", "own.csv", "--json", "--start-s", "1", "--end-s", "90")
    found = json.loads(done.stdout)
    assert (found["format"], found["arrivals"]["n"], found["arrivals"]["first"]) == ("csv", 26, 1.6)
    few = json.loads(pimserve(folder, "trace", "stats", "csv:own.csv", "--json", "--max-requests", "7").stdout)
    assert (few["arrivals"]["n"], few["input"]["max"]) == (7, 106)


def test_columns_by_other_names(folder):
    (folder / "other.csv").write_text("t,in,out\n2000,1,3\n1000,2,4\n")
    columns = ("--columns", "arrival=t", "--columns", "input=in", "--columns", "output=out", "--columns", "unit=ms")
    found = json.loads(pimserve(folder, "trace", "stats", "other.csv", "--json", "--sort", *columns).stdout)
    assert (found["arrivals"]["first"], found["arrivals"]["span_s"], found["arrivals"]["monotone"]) == (1, 1, False)


@pytest.mark.medium
@pytest.mark.parametrize(("kind", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_picture_is_the_same_each_time(folder, kind, begins):
    out = folder / f"picture.{kind}"
    assert pimserve(folder, "trace", "stats", "mooncake.jsonl", "--out", out).returncode == 0
    drawn = out.read_bytes()
    assert drawn.startswith(begins)
    assert pimserve(folder, "trace", "stats", "mooncake.jsonl", "--out", out).returncode == 0
    assert out.read_bytes() == drawn


@pytest.mark.medium
@pytest.mark.parametrize("rows", ["5,10,2\n", "5,10,2\n5,10,2\n", "5,10,2\n6,10,2\n"])
def test_few_rows_are_shown_and_drawn(folder, rows):
    (folder / "few.csv").write_text(OWN + rows)
    done = pimserve(folder, "trace", "stats", "few.csv", "--out", folder / "few.svg")
    assert (done.returncode, (folder / "few.svg").exists()) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.csv"], "none.csv: no such file"),
        (["own.csv", "--start-s", "1000"], "no row lies from start_s to end_s"),
        (["own.csv", "--start-s", "9", "--end-s", "4"], "trace: end_s (4.0) must be greater than start_s (9.0)"),
        (["own.csv", "--max-requests", "0"], "trace.max_requests"),
        (["own.csv", "--out", "picture.pdf"], "picture.pdf: must end in .png or .svg"),
        (["own.csv", "--columns", "arrival"], "--columns: 'arrival' is not KEY=NAME"),
        (["azzure:own.csv"], "FILE: 'azzure:own.csv' is not PATH or FORMAT:PATH"),
    ],
)
def test_mistakes_are_explained(folder, arguments, message):
    done = pimserve(folder, "trace", "stats", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_cut_is_written_whole_and_replays(folder):
    window = ("--start-s", "2", "--end-s", "200", "--target-rate", "5")
    done = pimserve(folder, "trace", "cut", "own.csv", *window, "--out", "cut.csv")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "40 of 50 rows in cut.csv\n")
    printed = pimserve(folder, "trace", "cut", "own.csv", *window)
    assert printed.stdout == (folder / "cut.csv").read_text()
    again = pimserve(folder, "trace", "cut", "cut.csv")
    assert again.stdout == printed.stdout
    assert json.loads(pimserve(folder, "trace", "stats", "cut.csv", "--json").stdout)["arrivals"]["rate_rps"] == 5


def test_a_cut_says_what_is_lost_and_replaces_nothing(folder):
    done = pimserve(folder, "trace", "cut", "mooncake.jsonl", "--out", "cut.csv")
    assert "note: lost: which prefixes prompts share (7 ids of blocks of 512 tokens)" in done.stderr
    refused = pimserve(folder, "trace", "cut", "own.csv", "--out", "cut.csv")
    assert (refused.returncode, "exists already" in refused.stderr) == (2, True)
    both = pimserve(folder, "trace", "cut", "own.csv", "--time-scale", "2", "--target-rate", "2")
    assert (both.returncode, both.stdout) == (2, "")
    assert "give time_scale or target_rate_per_s, not both" in both.stderr
    odd = pimserve(folder, "trace", "cut", "own.csv", "--tick-jitter", "odd")
    assert "trace.tick_jitter" in odd.stderr


@pytest.mark.medium
def test_a_fit_is_a_scenario_that_runs(folder):
    done = pimserve(folder, "trace", "fit", "own.csv", "--out", "fit.yaml")
    assert done.returncode == 0, done.stderr
    for shown in ("CV of gaps", "dispersion of counts, 60 s", "KS distance", "rank correlation"):
        assert shown in done.stdout
    text = (folder / "fit.yaml").read_text()
    assert text.startswith("# fitted by pimserve trace fit to 50 requests of own.csv\n")
    run = pimserve(folder, "run", "fit.yaml", "--quiet", "--set", "workload.num_requests=5")
    assert run.returncode == 0, run.stderr
    printed = pimserve(folder, "trace", "fit", "own.csv")
    assert printed.stdout == text
    assert "KS distance" in printed.stderr


def test_a_fit_as_json_with_what_is_not_fitted(folder):
    lines = [{"timestamp": 3000 * (n // 9), "input_length": 600 + n, "output_length": 5} for n in range(90)]
    text = "".join(json.dumps(line | {"hash_ids": [n, -n]}) + "\n" for n, line in enumerate(lines))
    (folder / "ticks.jsonl").write_text(text)
    found = json.loads(pimserve(folder, "trace", "fit", "mooncake:ticks.jsonl", "--json").stdout)
    assert set(found["ks_distances"]) == {"gaps", "input", "output"}
    assert found["trace"]["gap_cv"] < 2
    assert any("prefixes prompts share" in note for note in found["notes"])
    assert any("in ticks" in note for note in found["notes"])
    assert found["workload"]["num_requests"] == 90


def test_a_fit_of_too_little_is_refused(folder):
    (folder / "few.csv").write_text(OWN + "5,10,2\n5,10,2\n5,10,2\n")
    done = pimserve(folder, "trace", "fit", "few.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "three requests at least" in done.stderr
