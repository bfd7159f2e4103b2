"""Lengths from files: values and pairs, with how often they are there, in the scenario itself."""

import pytest

from pimserve.cluster.scenario.document import load_scenario, parse_scenario
from pimserve.errors import InputError

OUTPUT = "output: {kind: fixed, tokens: 5}"


def scenario(tmp_path, lengths, **files):
    for name, text in files.items():
        (tmp_path / f"{name}.csv").write_text(text)
    path = tmp_path / "scenario.yaml"
    path.write_text(f"workload: {{arrival: {{rate_per_s: 5}}, lengths: {{{lengths}}}}}")
    return load_scenario(path)


def test_values_of_a_column_with_how_often_they_are_there(tmp_path):
    law = "input: {kind: empirical, file: trace.csv, column: prompt}, " + OUTPUT
    found = scenario(tmp_path, law, trace='id,"prompt",x\na,30,1\nb,7,2\n\nc,30,3\n').workload.lengths
    assert (found.input.values, found.input.weights) == ((7, 30), (1, 2))


def test_values_of_a_file_without_a_header(tmp_path):
    found = scenario(tmp_path, "input: {kind: empirical, file: v.csv}, " + OUTPUT, v="5\n1\n5\n").workload.lengths
    assert (found.input.values, found.input.weights) == ((1, 5), (1, 2))


def test_pairs_of_two_columns_in_any_order(tmp_path):
    law = "joint: {kind: pairs, file: t.csv, columns: [in, out]}"
    found = scenario(tmp_path, law, t="out,in\n1,10\n2,20\n1,10\n").workload.lengths.joint
    assert (found.pairs, found.weights) == (((10, 1), (20, 2)), (2, 1))
    found = scenario(tmp_path, "joint: {kind: pairs, file: t.csv}", t="10,1\n20,2\n").workload.lengths.joint
    assert found.pairs == ((10, 1), (20, 2))


def test_the_scenario_that_was_run_needs_no_file(tmp_path):
    read = scenario(tmp_path, "input: {kind: empirical, file: v.csv}, " + OUTPUT, v="5\n1\n5\n")
    again = load_scenario(None, [f"workload={read.resolved()['workload']}"])
    assert again.workload == read.workload


@pytest.mark.parametrize(
    ("law", "text", "message"),
    [
        ("file: no.csv", "1", "no.csv"),
        ("file: v.csv", "", "holds no lengths"),
        ("file: v.csv", "1,2", "v.csv:1: has 2 columns, not 1"),
        ("file: v.csv", "1\nx", "v.csv:2: 'x' is not a whole number of tokens"),
        ("file: v.csv", "1\n2.5", "'2.5' is not a whole number"),
        ("file: v.csv", "1\n0", "greater than or equal to 1"),
        ("file: v.csv, column: b", "a\n1", "has no column 'b'; it has a"),
        ("file: v.csv, column: b", "a,b\n1", "too short: a column is missing"),
        ("file: v.csv, column: [a, b]", "a,b\n1", "must be the name of a column"),
        ("file: v.csv, values: [1]", "1", "say the same"),
        ("file: 7", "1", "must be the path of a file"),
    ],
)
def test_what_is_no_file_of_lengths_is_told(tmp_path, law, text, message):
    with pytest.raises(InputError) as told:
        scenario(tmp_path, f"input: {{kind: empirical, {law}}}, {OUTPUT}", v=text)
    assert message in str(told.value)


def test_a_scenario_from_elsewhere_reads_no_file():
    text = f"workload: {{lengths: {{input: {{kind: empirical, file: v.csv}}, {OUTPUT}}}}}"
    with pytest.raises(InputError, match=r"'v\.csv' is a file, which is not read here: give values"):
        parse_scenario(text, "somewhere")
