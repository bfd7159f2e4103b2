"""Requests drawn from ServeGen's clients: rates, laws of gaps, lengths, and what a cut leaves alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from pimserve.errors import InputError
from pimserve.loadgen.streams import Streams
from pimserve.loadgen.traces import Trace, TraceSpec, load_trace
from pimserve.loadgen.traces.formats.servegen import read_clients, read_servegen
from pimserve.loadgen.traces.rows import Columns, Reading, Selection
from tests.loadgen.slices import SLICES, real

S = 10**12
LENGTHS = {"input_tokens": "{10: 0.25, 20: 0.75}", "output_tokens": "{1: 0.5, 3: 0.5}", "reason_ratio": "{0.5: 1.0}"}


def write(folder: Path, number: int, windows: Sequence[str], lengths: Mapping[str, object] | str | None = None) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"chunk-{number}-trace.csv").write_text("".join(f"{row}\n" for row in windows))
    if lengths is not None:
        text = lengths if isinstance(lengths, str) else json.dumps(lengths)
        (folder / f"chunk-{number}-dataset.json").write_text(text)


def load(folder: Path, seed: int = 0, **keys: object) -> Trace:
    return load_trace(TraceSpec.model_validate({"path": str(folder), **keys}), Streams(seed))


def test_rates_and_laws_are_those_of_the_windows(tmp_path: Path) -> None:
    """Within four standard errors; the laws' CVs within 5 %."""
    windows = ["0,50,0.5,Gamma,4,1", "600,0,0,,0,0", "1200,100,1,Weibull,1,9", "1800,20,1,,0,0"]
    write(tmp_path, 0, windows, {"0": LENGTHS})
    trace = load(tmp_path)
    assert trace.format == "servegen"
    counts = np.bincount(trace.arrival_ps // (600 * S))
    for found, expected, cv in zip(counts, (30_000, 0, 60_000, 12_000), (0.5, 1, 1, 1), strict=True):
        assert abs(found - expected) <= 4 * cv * max(expected, 1) ** 0.5
    gaps = np.diff(trace.arrival_ps[trace.arrival_ps < 590 * S] / S)
    assert gaps.std() / gaps.mean() == pytest.approx(0.5, rel=0.05)


def test_lengths_are_drawn_by_their_probabilities_independently(tmp_path: Path) -> None:
    other = {"input_tokens": "{7: 1.0}", "output_tokens": "{8: 1.0}"}
    write(tmp_path, 0, ["0,50,1,Gamma,1,1", "21600,1,1,Gamma,1,1"], {"0": LENGTHS, "21600": other, "43200": {}})
    trace = load(tmp_path)
    first = trace.arrival_ps < 21000 * S
    inputs, outputs = trace.input_tokens[first], trace.output_tokens[first]
    assert set(inputs) == {10, 20}
    assert (inputs == 20).mean() == pytest.approx(0.75, abs=4 * (0.1875 / len(inputs)) ** 0.5)
    assert abs(np.corrcoef(inputs, outputs)[0, 1]) < 4 / len(inputs) ** 0.5
    assert set(trace.input_tokens[trace.arrival_ps > 21600 * S]) == {7}


def test_a_cut_and_other_clients_leave_draws_alone(tmp_path: Path) -> None:
    for folder, clients in (("three", 3), ("two", 2)):
        for number in range(clients):
            windows = [f"{600 * w},{1 + number},2,Gamma,0.25,1" for w in range(5)]
            lengths = {"input_tokens": f"{{{number + 1}: 1.0}}", "output_tokens": "{1: 0.5, 3: 0.5}"}
            write(tmp_path / folder, number, windows, {"0": lengths})
    columns = Columns("", "", "")

    def rows(folder: str, seed: int = 0, **cut: float) -> np.ndarray:
        read = read_servegen(tmp_path / folder, columns, Reading(Selection(**cut), streams=Streams(seed)))
        return np.array([read.after_ps + read.clock_ps, read.input_tokens, read.output_tokens])

    three = rows("three")
    np.testing.assert_array_equal(rows("two"), three[:, three[1] < 3])
    inside = (three[0] >= 700 * S) & (three[0] < 2000 * S)
    np.testing.assert_array_equal(rows("three", start_s=700, end_s=2000), three[:, inside])
    assert rows("three", 1).tolist() != three.tolist()


def test_requests_without_tokens_are_left_out(tmp_path: Path) -> None:
    lengths = {"input_tokens": "{0: 0.5, 9: 0.5}", "output_tokens": "{1: 1.0}"}
    write(tmp_path, 4, ["0,10,1,Gamma,1,1"], {"0": lengths})
    trace = load(tmp_path)
    assert trace.rows_read == len(trace.arrival_ps) + trace.rows_dropped["zero tokens"]
    assert 2_000 < trace.rows_dropped["zero tokens"] < 4_000


GOOD = ["0,1,1,Gamma,1,1"]


@pytest.mark.parametrize(
    ("windows", "lengths", "message"),
    [
        (["0,1,1,Pareto,1,1"], {"0": LENGTHS}, "chunk-7-trace.csv:1: window start (s, ascending), rate, CV, Gamma or"),
        (["0,1,1,Gamma,0,1"], {"0": LENGTHS}, "chunk-7-trace.csv:1: window"),
        ([*GOOD, "0,1,1,Gamma,1,1"], {"0": LENGTHS}, "chunk-7-trace.csv:2: window"),
        ([*GOOD, "600"], {"0": LENGTHS}, "chunk-7-trace.csv:2: window"),
        (["0,-1,1,Gamma,1,1"], {"0": LENGTHS}, "chunk-7-trace.csv:1: window"),
        (GOOD, None, "client 7 has no chunk-7-dataset.json"),
        (GOOD, {"0": {}}, "client 7 has no chunk-7-dataset.json (or what it says of lengths)"),
        (
            GOOD,
            "{",
            "chunk-7-dataset.json: {window start: {input_tokens, output_tokens: text of {tokens: ",
        ),
        (GOOD, {"0": {**LENGTHS, "input_tokens": "__import__('os')"}}, "chunk-7-dataset.json: {window start"),
        (
            GOOD,
            {"0": {**LENGTHS, "input_tokens": "{5: -1}"}},
            "values from 0 to 10,000,000 and probabilities",
        ),
        (["0,0,0,,0,0"], None, "no client sends a request from start_s to end_s"),
        (["0,1e6,1,Gamma,1,1"], {"0": LENGTHS}, "gives more than 20000000 requests; start_s and end_s give fewer"),
    ],
)
def test_bad_clients_are_refused(tmp_path: Path, windows, lengths, message: str) -> None:
    write(tmp_path, 7, windows, lengths)
    with pytest.raises(InputError) as refused:
        load(tmp_path)
    assert message in str(refused.value)


def test_requests_of_clients_whose_lengths_are_missing_can_be_left_out(tmp_path: Path) -> None:
    """As of the larger public workloads, of which some datasets are missing; the draws of the others stay."""
    for folder, lengths in (("whole", {"0": LENGTHS}), ("part", None)):
        write(tmp_path / folder, 0, ["0,5,1,Gamma,1,1"], {"0": LENGTHS})
        write(tmp_path / folder, 1, ["0,2,1,Gamma,1,1"], lengths)
    with pytest.raises(
        InputError, match=r"client 1 has no chunk-1-dataset.json .*on_bad_row: drop leaves its requests"
    ):
        load(tmp_path / "part")
    whole, part = load(tmp_path / "whole"), load(tmp_path / "part", on_bad_row="drop")
    (tmp_path / "whole" / "chunk-1-trace.csv").unlink()
    (tmp_path / "whole" / "chunk-1-dataset.json").unlink()
    alone = load(tmp_path / "whole")
    assert part.arrival_ps.tolist() == alone.arrival_ps.tolist()
    assert part.rows_dropped == {"of clients without lengths": whole.rows_read - alone.rows_read}
    assert part.rows_read == whole.rows_read
    assert any("of 1 recorded clients" in warning for warning in part.warnings)


@pytest.mark.medium
@pytest.mark.parametrize("name", [pytest.param("servegen_deepseek-r1_top12_day0.tar.gz", marks=real)])
def test_the_slice_gives_its_rates_and_mean_lengths(name: str) -> None:
    expected = json.loads((SLICES / "expected_stats.json").read_text())[name]
    clients = read_clients(SLICES / name)
    rates = np.sum([client.rates for client in clients.values()], axis=0)
    assert len(clients) == expected["clients"]
    assert rates.mean() == pytest.approx(expected["total_rate_rps"]["mean"], abs=1e-6)
    trace = load(SLICES / name)
    assert len(trace.arrival_ps) / 86_400 == pytest.approx(rates.mean(), rel=0.01)
    counts = np.bincount(trace.arrival_ps // (3600 * S), minlength=24) / 3600
    assert np.corrcoef(counts[:24], rates.reshape(24, 6).mean(axis=1))[0, 1] > 0.995
    for file, means in expected["pdf_means"].items():
        client = clients[int(file.split("-")[1])]
        for begin, fields in means.items():
            for law, key in zip(client.lengths[float(begin)], ("input_tokens", "output_tokens"), strict=True):
                mean = law.tokens @ np.diff(law.cumulative, prepend=0)
                assert mean == pytest.approx(fields[key], rel=1e-6)
