"""ServeGen (alibaba/ServeGen, Apache-2.0): requests drawn from the rates and length distributions of recorded clients.

Each client has `chunk-I-trace.csv` (window start s, rate, CV, law of gaps, shape, scale; no header) and
`chunk-I-dataset.json` (window start: {field: "{value: probability}"}). Arrivals of a client are a renewal process in
operational time, with each window's law and rate, so that counts vary as such a process's do (ServeGen itself fixes the
count of every window). Input and output lengths are drawn independently (ServeGen takes one uniform for all fields of a
request, which correlates them perfectly). A window without distributions takes those of the one before, else after, it.
"""

import ast
import csv
import io
import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pimserve.arrays import FloatArray, IntArray
from pimserve.errors import InputError
from pimserve.loadgen.gap_laws import UnitGaps, exponential, gamma, weibull
from pimserve.loadgen.spec import MAX_REQUESTS, MAX_TIME_S, MAX_TOKENS, PS_PER_S
from pimserve.loadgen.traces.rows import Columns, Reading, TraceRows
from pimserve.loadgen.traces.rows_read import NO_TOKENS
from pimserve.loadgen.traces.servegen_description import describe_servegen
from pimserve.loadgen.traces.trace_files import Head, Member, members
from pimserve.loadgen.traces.trace_format import TraceFormat

_NAME = re.compile(r"(?:.*/)?chunk-(\d{1,9})-(trace\.csv|dataset\.json)(?:\.gz|\.zst)?")
_MAX_BYTES = 1 << 27
_LAWS = {"Gamma": gamma, "Weibull": weibull}
_MOST_GAPS = 1 << 16  # drawn at once
_NO_LENGTHS = "of clients without lengths"


@dataclass(frozen=True)
class Law:
    """Probabilities of numbers of tokens: `tokens` (n,) ascending, `cumulative` (n,) up to 1."""

    tokens: IntArray
    cumulative: FloatArray

    def sample(self, uniforms: FloatArray) -> IntArray:
        """By its inverse."""
        places = np.searchsorted(self.cumulative, uniforms, side="right")
        sampled: IntArray = self.tokens[places.clip(max=len(self.tokens) - 1)]
        return sampled


@dataclass
class Client:
    """A client: from `begins_s` of each window on its rate (requests/s) and law of gaps; lengths by windows of theirs.

    `others`: what is said of requests beside their lengths.
    """

    begins_s: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    laws: list[UnitGaps] = field(default_factory=list)
    lengths: dict[float, tuple[Law, Law]] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)

    @property
    def window_s(self) -> float:
        """Length of a window."""
        return self.begins_s[1] - self.begins_s[0] if len(self.begins_s) > 1 else 600.0


def read_clients(path: Path, *, without_lengths: bool = False) -> dict[int, Client]:
    """Clients of a folder or archive, by number.

    Args:
        path: folder or archive.
        without_lengths: there may be clients of which the trace does not know the lengths.

    Raises:
        InputError: with the file, for what is wrong.
    """
    clients: dict[int, Client] = {}
    for member in members(path):
        if match := _NAME.fullmatch(member.name):
            client = clients.setdefault(int(match[1]), Client())
            data = member.content.read(_MAX_BYTES + 1)
            if len(data) > _MAX_BYTES:
                raise InputError(member.place, f"is larger than {_MAX_BYTES >> 20} MiB")
            try:
                text = data.decode()
            except UnicodeDecodeError:
                raise InputError(member.place, "is not UTF-8 text") from None
            (_read_windows if match[2] == "trace.csv" else _read_lengths)(member, text, client)
    if not clients:
        raise InputError(str(path), "holds no chunk-N-trace.csv and chunk-N-dataset.json")
    for number, client in clients.items():
        if not client.begins_s:
            raise InputError(str(path), f"client {number} has no chunk-{number}-trace.csv")
        if any(client.rates) and not client.lengths and not without_lengths:
            missing = f"chunk-{number}-dataset.json (or what it says of lengths)"
            message = f"client {number} has no {missing}; workload.trace.on_bad_row: drop leaves its requests out"
            raise InputError(str(path), message)
    return dict(sorted(clients.items()))


def _read_windows(member: Member, text: str, client: Client) -> None:
    for number, row in enumerate(csv.reader(io.StringIO(text)), start=1):
        try:
            begin_s, rate = float(row[0]), float(row[1])
            good = 0 <= begin_s <= MAX_TIME_S and 0 <= rate < math.inf
            good &= not client.begins_s or begin_s > client.begins_s[-1]
            law = exponential() if rate == 0 or not row[3] else _LAWS[row[3]](_positive(row[4]))
        except (ValueError, KeyError, IndexError):
            good = False
        if not good:
            message = "window start (s, ascending), rate, CV, Gamma or Weibull or nothing, shape, scale are needed"
            raise InputError(f"{member.place}:{number}", message)
        client.begins_s.append(begin_s)
        client.rates.append(rate)
        client.laws.append(law)


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError(text)
    return number


def _read_lengths(member: Member, text: str, client: Client) -> None:
    try:
        document = json.loads(text)
        for begin, fields in document.items():
            laws = [_law(fields.get(name, "{}")) for name in ("input_tokens", "output_tokens")]
            if laws[0] is not None and laws[1] is not None:
                client.lengths[float(begin)] = (laws[0], laws[1])
            client.others.update(set(fields) - {"input_tokens", "output_tokens"})
    except (ValueError, SyntaxError, AttributeError, TypeError, RecursionError, MemoryError) as error:
        message = "{window start: {input_tokens, output_tokens: text of {tokens: probability}}} is needed"
        raise InputError(member.place, f"{message} ({type(error).__name__}: {str(error)[:80]})") from None


def _law(text: str) -> Law | None:
    """A distribution; None if nothing is said."""
    said: Mapping[float, float] = ast.literal_eval(text)
    if not said:
        return None
    tokens = np.array(sorted(said), float)
    weights = np.array([said[value] for value in sorted(said)], float)
    if not (weights.min() >= 0 and 0 < weights.sum() < math.inf and tokens[0] >= 0 and tokens[-1] <= MAX_TOKENS):
        raise ValueError("values from 0 to 10,000,000 and probabilities from 0 on")
    return Law(tokens.astype(np.int64), np.cumsum(weights) / weights.sum())


def _arrivals(client: Client, end_s: float, rng: np.random.Generator) -> Iterator[tuple[int, FloatArray]]:
    """Windows that begin before `end_s`, and times in each, s: unit gaps through the inverse of the integrated rate."""
    passed, due = 0.0, None  # operational time of the window's beginning, and of the next arrival
    for window, (begin_s, rate, law) in enumerate(zip(client.begins_s, client.rates, client.laws, strict=True)):
        if rate == 0 or begin_s >= end_s:
            continue
        following = client.begins_s[window + 1 : window + 2]
        ends = passed + rate * ((following[0] if following else begin_s + client.window_s) - begin_s)
        if due is None:
            due = passed + float(law(rng, 1)[0])
        found: list[FloatArray] = []
        while due < ends:
            gaps = law(rng, min(_MOST_GAPS, 16 + int(1.2 * (ends - due))))
            at = due + np.concatenate([[0.0], np.cumsum(gaps)])
            inside = min(int(np.searchsorted(at, ends)), len(gaps))
            found.append(at[:inside])
            due = float(at[inside])
        if found:
            yield window, begin_s + (np.concatenate(found) - passed) / rate
        passed = ends


def read_servegen(path: Path, _columns: Columns, reading: Reading) -> TraceRows:
    """Requests of all clients by time, of the time that is selected. Raises InputError for a bad file, or too many."""
    clients = read_clients(path, without_lengths=reading.drop_bad)
    start_s = reading.selection.start_s
    end_s = math.inf if reading.selection.end_s is None else reading.selection.end_s
    if _most(clients.values(), start_s, end_s) > MAX_REQUESTS:
        raise InputError(str(path), f"gives more than {MAX_REQUESTS} requests; start_s and end_s give fewer")
    parts: list[tuple[FloatArray, IntArray, IntArray]] = []
    of_no_length = 0
    for number, client in clients.items():
        for window, times_s in _arrivals(client, end_s, reading.streams.rng(f"servegen {number} arrivals")):
            wanted = (times_s >= start_s) & (times_s < end_s)
            if not client.lengths:
                of_no_length += int(wanted.sum())
            if not client.lengths or times_s[-1] < start_s:
                continue
            laws = _laws_at(client, client.begins_s[window])
            lengths = (
                law.sample(reading.streams.rng(f"servegen {number} {name} {window}").random(len(times_s)))
                for name, law in zip(("input", "output"), laws, strict=True)
            )
            inputs, outputs = (tokens[wanted] for tokens in lengths)
            parts.append((times_s[wanted], inputs, outputs))
    if not any(len(inputs) for _, inputs, _ in parts):
        raise InputError(str(path), "no client sends a request from start_s to end_s")
    return _merged(parts, clients, of_no_length)


def _most(clients: Iterable[Client], start_s: float, end_s: float) -> float:
    """Requests to be expected of the time that is selected, or of a whole window, which is drawn at once."""
    total = largest = 0.0
    for client in clients:
        ends_s = [*client.begins_s[1:], client.begins_s[-1] + client.window_s]
        for begin, end, rate in zip(client.begins_s, ends_s, client.rates, strict=True):
            total += rate * max(min(end, end_s) - max(begin, start_s), 0)
            largest = max(largest, rate * (end - begin))
    return max(total, largest)


def _laws_at(client: Client, begin_s: float) -> tuple[Law, Law]:
    begins_s = sorted(client.lengths)
    return client.lengths[begins_s[max(bisect_right(begins_s, begin_s) - 1, 0)]]


def _merged(
    parts: Sequence[tuple[FloatArray, IntArray, IntArray]], clients: Mapping[int, Client], of_no_length: int
) -> TraceRows:
    times_s, inputs, outputs = (np.concatenate(column) for column in zip(*parts, strict=True))
    served = np.flatnonzero((inputs > 0) & (outputs > 0))
    order = served[np.argsort(times_s[served], kind="stable")]
    after_ps = np.rint(times_s[order] * PS_PER_S).astype(np.int64)
    others = frozenset[str]().union(*(client.others for client in clients.values()))
    dropped = {NO_TOKENS: len(times_s) - len(served), _NO_LENGTHS: of_no_length}
    known = sum(bool(client.lengths) for client in clients.values())
    drawn = f"requests are drawn, by the run's seed, from the rates and lengths of {known} recorded clients"
    return TraceRows(
        after_ps - after_ps[0],
        int(after_ps[0]),
        inputs[order],
        outputs[order],
        dropped={reason: count for reason, count in dropped.items() if count},
        others=others,
        notes=(drawn,),
    )


def _recognises(heads: Sequence[Head], _columns: Columns) -> bool:
    return any(_NAME.fullmatch(head.name) for head in heads)


_MEDIA = ("image_tokens", "audio_tokens", "video_tokens")
FORMAT = TraceFormat(
    "servegen",
    "folder of clients, chunk-N-trace.csv and chunk-N-dataset.json, from whose rates and lengths requests are drawn",
    _recognises,
    read_servegen,
    Columns("", "", ""),
    dict.fromkeys(_MEDIA, "images, audio and video are not modelled: prompts are the clients' input_tokens"),
    describe=describe_servegen,
)
