"""Classes of requests: who is of which, by share or by the labels of a trace, and how long they are."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pimserve.errors import InputError
from pimserve.loadgen.workload import Workload, WorkloadSpec, generate
from tests.examples import examples

BASE = {
    "arrival": {"rate_per_s": 5},
    "num_requests": 20_000,
    "lengths": {"input": {"kind": "uniform", "low": 5, "high": 5000}, "output": {"kind": "geometric", "mean": 300}},
}
OWN = {"input": {"kind": "fixed", "tokens": 7}, "output": {"kind": "uniform", "low": 1, "high": 1000}}
LABELS = [{"name": "a", "labels": ["GPT-4"]}, {"name": "b", "labels": ["ChatGPT", ""]}]


def make(classes: object, seed: int = 3, **keys: object) -> Workload:
    return generate(WorkloadSpec.model_validate(BASE | {"classes": classes} | keys), seed)


def test_shares_are_relative_and_drawn_request_by_request():
    w = make([{"name": "chat", "share": 6}, {"name": "batch", "share": 3}, {"name": "rest"}])
    assert w.class_ids.dtype == np.int8
    assert np.bincount(w.class_ids) / 20_000 == pytest.approx([0, 0.6, 0.3, 0.1], abs=0.012)
    same = np.mean((w.class_ids[1:] == 1) & (w.class_ids[:-1] == 1))
    assert same == pytest.approx(0.36, abs=0.015)  # independent of the one before
    assert "classes chat 0.6, batch 0.3, rest 0.1" in w.description
    assert [each.owner for each in w.classes] == ["chat", "batch", "rest"]


def test_there_are_no_classes_where_none_are_asked_for():
    w = generate(WorkloadSpec.model_validate(BASE), 3)
    assert (w.classes, w.class_ids) == ((), None)


def test_classes_change_no_other_draw():
    plain = generate(WorkloadSpec.model_validate(BASE), 3)
    for classes in ([{"name": "one"}], [{"name": "x", "share": 5}, {"name": "y"}]):
        w = make(classes)
        for name in ("arrival_ps", "input_tokens", "output_tokens"):
            np.testing.assert_array_equal(getattr(w, name), getattr(plain, name))
    assert not np.array_equal(make(classes).class_ids, make(classes, seed=4).class_ids)


def test_lengths_of_a_class_leave_those_of_all_others():
    two = [{"name": "x", "lengths": OWN}, {"name": "y"}]
    w, plain = make(two), make([{"name": "x"}, {"name": "y"}])
    np.testing.assert_array_equal(w.class_ids, plain.class_ids)
    x, y = w.class_ids == 1, w.class_ids == 2
    assert set(w.input_tokens[x]) == {7}
    assert w.output_tokens[x].max() <= 1000
    np.testing.assert_array_equal(w.input_tokens[y], plain.input_tokens[y])
    np.testing.assert_array_equal(w.output_tokens[y], plain.output_tokens[y])
    other = make([two[0], {"name": "y", "lengths": {**OWN, "output": {"kind": "fixed", "tokens": 5}}}], lengths=None)
    np.testing.assert_array_equal(other.output_tokens[x], w.output_tokens[x])
    assert set(other.output_tokens[y]) == {5}


def test_two_classes_of_one_law_have_draws_of_their_own():
    w = make([{"name": "x", "lengths": OWN}, {"name": "y", "lengths": OWN}], lengths=None)
    x, y = (w.output_tokens[w.class_ids == number][:1000] for number in (1, 2))
    assert not np.array_equal(x, y)


def test_a_class_with_lengths_of_its_own_has_the_prefix_of_all():
    w = make([{"name": "x", "lengths": OWN}, {"name": "y"}], prefix={"system_tokens": 100, "shared_tokens": 10})
    assert set(w.input_tokens[w.class_ids == 1]) == {117}
    own = {"output": {"kind": "fixed", "tokens": 9}}
    prefix = {"system_tokens": 100, "own_tokens": 10}
    w = make([{"name": "x", "lengths": own}], prefix=prefix, lengths=None)
    assert (set(w.input_tokens), set(w.output_tokens)) == ({110}, {9})


def test_all_turns_of_a_session_are_of_its_class():
    sessions = {"turns": {"kind": "geometric", "mean": 3}, "num_sessions": 500}
    w = make([{"name": "x"}, {"name": "y"}], num_requests=None, sessions=sessions)
    of_session = w.class_ids[:500]
    np.testing.assert_array_equal(w.class_ids, of_session[w.turns.session])
    assert 0 < of_session.tolist().count(1) < 500


def test_closed_loops_have_classes():
    w = make([{"name": "x"}, {"name": "y"}], mode="closed", concurrency=4, arrival=None, num_requests=100)
    assert set(w.class_ids) == {1, 2}


def burstgpt(folder) -> str:
    rows = ["5,ChatGPT,472,18,490", "45,ChatGPT,1087,230,1317", "118,GPT-4,417,276,693", "120,GPT-4,5,0,5"]
    path = folder / "burst.csv"
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    path.write_text("\n".join([header, *(row + ",API log" for row in rows)]) + "\n")
    return str(path)


def replay(path: str, classes: object = LABELS, **keys: object) -> Workload:
    spec = {"trace": {"path": path, **keys}, "classes": classes}
    return generate(WorkloadSpec.model_validate(spec), 0)


def test_models_of_burstgpt_are_classes(tmp_path):
    w = replay(burstgpt(tmp_path))
    assert w.class_ids.tolist() == [2, 2, 1]
    assert w.output_tokens.tolist() == [18, 230, 276]
    assert "by labels of the trace" in w.description
    assert replay(burstgpt(tmp_path), label_column="Log Type", classes=[{"name": "a", "labels": ["API log"]}])
    again = {"trace": {"path": burstgpt(tmp_path)}, "classes": LABELS, "arrival": {"rate_per_s": 1}, "num_requests": 7}
    assert generate(WorkloadSpec.model_validate(again), 0).class_ids.tolist() == [2, 2, 1, 2, 2, 1, 2]


@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize("sort", [False, True])
def test_a_column_of_any_csv_is_read_fast_or_row_by_row(tmp_path, quoted, sort):
    mark = '"' if quoted else ""
    rows = [f"{time},{mark}{kind}{mark},10,{time + 1}" for time, kind in ((0, "u"), (2, "v"), (1, "v"), (4, "u"))]
    rows = rows if sort else [rows[0], rows[2], rows[1], rows[3]]
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write("\n".join(["arrival_s,kind,input_tokens,output_tokens", *rows]) + "\n")
    classes = [{"name": "first", "labels": ["v"]}, {"name": "second", "labels": ["u"]}]
    w = replay(str(tmp_path / "t.csv.gz"), classes, label_column="kind", sort=sort, end_s=3.0)
    assert (w.class_ids.tolist(), w.output_tokens.tolist()) == ([2, 1, 1], [1, 2, 3])


def test_types_of_bailian_stay_with_turns_that_are_put_in_order(tmp_path):
    def row(chat: int, parent: int, kind: str) -> str:
        line = {"chat_id": chat, "parent_chat_id": parent, "timestamp": chat, "input_length": 9, "output_length": chat}
        return json.dumps(line | {"type": kind, "turn": 1, "hash_ids": [1]})

    path = tmp_path / "t.jsonl"
    path.write_text("\n".join([row(1, -1, "text"), row(2, 1, "file"), row(3, -1, "file")]) + "\n")
    w = replay(str(path), [{"name": "a", "labels": ["text"]}, {"name": "b", "labels": ["file"]}])
    assert (w.output_tokens.tolist(), w.class_ids.tolist()) == ([1, 3, 2], [1, 2, 2])


def test_shares_of_a_trace_are_drawn(tmp_path):
    w = replay(burstgpt(tmp_path), [{"name": "a"}, {"name": "b"}])
    assert set(w.class_ids) <= {1, 2}


def test_labels_that_are_not_there_are_told(tmp_path):
    with pytest.raises(InputError, match=r"workload\.classes: rows of the trace have labels that are of no class: 'Ch"):
        replay(burstgpt(tmp_path), [{"name": "a", "labels": ["GPT-4"]}])
    with pytest.raises(InputError, match="labels need a trace whose rows have them"):
        replay(burstgpt(tmp_path), LABELS, label_column="Kind")
    path = tmp_path / "ids.csv"
    path.write_text("arrival_s,input_tokens,output_tokens,class\n" + "".join(f"{i},1,1,id{i}\n" for i in range(1001)))
    with pytest.raises(InputError, match=r"label_column: class has more than 1000 different values"):
        replay(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": []}, "at least 1"),
        ({"classes": [{"name": f"c{i}"} for i in range(17)]}, "at most 16"),
        ({"classes": [{"name": "a b"}]}, "pattern"),
        ({"classes": [{"name": ""}]}, "pattern"),
        ({"classes": [{"name": "a", "tenant": "ä"}]}, "pattern"),
        ({"classes": [{"name": "a"}, {"name": "a"}]}, "two are called 'a'"),
        ({"classes": [{"name": "a", "share": 0}]}, "greater than 0"),
        ({"classes": [{"name": "a", "share": -1}]}, "greater than 0"),
        ({"classes": [{"name": "a", "priority": 1.5}]}, "integer"),
        ({"classes": [{"name": "a", "priority": 2**31}]}, "less than"),
        ({"classes": [{"name": "a", "slo": {"ttft": 1}}]}, "not permitted"),
        ({"classes": [{"name": "a", "slo": {"itl_p99_s": 1}}]}, "itl are known of all requests together"),
        ({"classes": [{"name": "a", "lengths": {"output": OWN["output"]}}]}, "lengths needs either input"),
        ({"classes": [{"name": "a", "lengths": {"joint": {"kind": "trace"}}}]}, "lengths of kind 'trace'"),
        ({"classes": [{"name": "a", "lengths": OWN}]}, "every class has its own"),
        ({"classes": [{"name": "a", "labels": ["x"]}]}, "labels of classes need trace"),
        ({"classes": [{"name": "a", "labels": ["x"], "share": 1}]}, "share has no effect beside labels"),
        ({"classes": [*LABELS, {"name": "c"}], "trace": {"path": "x"}}, "all need labels, or none; c has none"),
        ({"classes": [*LABELS, {"name": "c", "labels": [""]}], "trace": {"path": "x"}}, "label '' is there twice"),
        ({"classes": [{"name": "a"}], "trace": {"path": "x", "label_column": "y"}, "arrival": None}, "without labels"),
        (
            {"classes": LABELS, "trace": {"path": "x"}, "lengths": {"joint": {"kind": "trace"}}},
            "those of the trace's rows, which are drawn here",
        ),
        (
            {
                "classes": [{"name": "a", "lengths": OWN}, {"name": "b"}],
                "prefix": {"shared_tokens": 5, "prompts_per_group": 2},
            },
            "exclude prefix.prompts_per_group",
        ),
    ],
)
def test_classes_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        WorkloadSpec.model_validate(BASE | changes)


@examples(40)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=16), st.integers(0, 2**40), st.integers(1, 400))
def test_every_request_has_a_class_and_more_requests_begin_alike(shares, seed, n):
    classes = [{"name": f"c{place}", "share": share} for place, share in enumerate(shares)]
    ids = make(classes, seed, num_requests=n).class_ids
    assert ids.min() >= 1
    assert ids.max() <= len(shares)
    np.testing.assert_array_equal(ids, make(classes, seed, num_requests=n + 50).class_ids[:n])
