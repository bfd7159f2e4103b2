"""What requests may hold: a table of ranges, which every request is held against before anything looks at it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from pimserve.cluster.base.rpc.statuses import RequestError
from pimserve.cluster.base.speed import FASTEST, SLOWEST
from pimserve.errors import shortened

Broken = Iterator[tuple[str, str]]  # place below the field, such as "[3]", and what is wrong there

MAX_SCENARIO_BYTES = 1 << 20
MAX_INJECTED = 10_000
MAX_PAGE = 1000
_MAX_TOKENS = 10**6
_MOST_DELAY_S = 1e6
_MOST_LABELS = 32


@dataclass(frozen=True, slots=True)
class Rule:
    """What a field may hold.

    Args:
        limits: as the comment of the field in the contract has them.
        broken: gives all that is wrong with a value.
    """

    limits: tuple[str, ...]
    broken: Callable[[Any], Broken]


def _number(low: float, high: float = math.inf, *, or_zero: bool = False) -> Rule:
    limits = f"{low:g} or more" if high == math.inf else f"{low:,.12g} to {high:,.12g}"
    text = f"must be {limits}{', or 0' if or_zero else ''}"

    def broken(value: float) -> Broken:
        if not ((or_zero and value == 0) or (math.isfinite(value) and low <= value <= high)):
            yield "", f"{text} (got {value:g})"

    return Rule((limits,), broken)


def _enum(most: int, *, or_none: bool = False) -> Rule:
    """One of the values of an enumeration, which the contract lists."""
    return Rule((), _number(0 if or_none else 1, most).broken)


def _text(most_bytes: int, *, needed: bool = False, pattern: str | None = None, what: str = "") -> Rule:
    form = re.compile(pattern) if pattern else None

    def broken(value: str) -> Broken:
        if needed and not value:
            yield "", "is missing"
        elif (size := len(value.encode())) > most_bytes:
            yield "", f"has {size:,} bytes; {most_bytes:,} are allowed"
        elif value and form is not None and not form.fullmatch(value):
            yield "", f"must be {what} (got {shortened(repr(value))})"

    return Rule((f"{most_bytes:,}" if most_bytes < MAX_SCENARIO_BYTES else "1 MiB",), broken)


def _each(rule: Rule, *, at_least: int = 0, at_most: int) -> Rule:
    count = f"{at_least:,} to {at_most:,}"

    def broken(values: Sequence[Any]) -> Broken:
        if not at_least <= len(values) <= at_most:
            yield "", f"must have {count} entries (got {len(values):,})"
            return
        for number, value in enumerate(values):
            yield from ((f"[{number}]{below}", wrong) for below, wrong in rule.broken(value))

    return Rule((count if at_least else f"{at_most:,}", *rule.limits), broken)


def _map(key: Rule, value: Rule, *, at_most: int) -> Rule:
    def broken(entries: Mapping[str, str]) -> Broken:
        if len(entries) > at_most:
            yield "", f"must have {at_most} entries at most (got {len(entries):,})"
            return
        for name, text in sorted(entries.items()):
            yield from ((f"[{shortened(name)}]", f"its key {wrong}") for _, wrong in key.broken(name))
            yield from ((f"[{shortened(name)}]", wrong) for _, wrong in value.broken(text))

    return Rule((f"{at_most:,}", *key.limits, *value.limits), broken)


_RUN_ID = _text(64, needed=True)  # whatever it is made of: what no run has is not found
_TOKENS = _each(_number(1, _MAX_TOKENS), at_least=1, at_most=MAX_INJECTED)
_SPEED = _number(SLOWEST, FASTEST, or_zero=True)
_LABELS = _map(
    _text(63, needed=True, pattern=r"[a-z0-9][a-z0-9._/-]*", what="of a-z, 0-9, dot, dash, underscore and slash"),
    _text(255),
    at_most=_MOST_LABELS,
)

# Message -> field -> rule. A field that is not here may hold anything that its type can.
RULES: Mapping[str, Mapping[str, Rule]] = {
    "ScenarioDocument": {
        "yaml": _text(MAX_SCENARIO_BYTES),
        "overrides": _each(_text(10_000), at_most=1000),
        "trace": _text(1000),
    },
    "LaunchOptions": {
        "speed": _SPEED,
        "on": _text(300),
        "shards": _number(1, 4096),
        "devices": _enum(3, or_none=True),
        "devices_per_actor": _number(1, 10**6),
        "resource": _each(_text(200, needed=True), at_most=16),
        "host_timeout_s": _number(2, 3600),
    },
    "LaunchRequest": {
        "idempotency_key": _text(128, pattern=r"[\x21-\x7e]+", what="up to 128 visible ASCII characters"),
        "labels": _LABELS,
    },
    "ListRequest": {
        "page_size": _number(1, MAX_PAGE, or_zero=True),
        "page_token": _text(20, pattern=r"[1-9][0-9]{0,17}", what="the next_page_token of another page"),
        "states": _each(_enum(7), at_most=7),
        "labels": _LABELS,
        "name": _text(200),
    },
    "ChangeSpeedRequest": {"speed": _SPEED},
    "WatchRequest": {"interval_s": _number(0.05, 60, or_zero=True)},
    "FollowRequest": {"interval_s": _number(0.05, 60)},
    "GetResultsRequest": {"names": _each(_text(100, needed=True), at_most=100)},
    "DescribeRequestRequest": {"request": _number(0)},
    "GetLatenciesRequest": {"percentiles": _each(_number(1e-6, 100), at_most=100)},
    "GetDevicesRequest": {"replicas": _each(_number(0), at_most=10_000)},
    "ChangeSchedulerRequest": {
        "router": _text(100, needed=True),
        "max_num_seqs": _number(1, 2**31 - 1),
        "max_num_batched_tokens": _number(1, 2**31 - 1),
    },
    "ScaleRateRequest": {"factor": _number(0.01, 100)},
    "InjectRequestsRequest": {
        "input_tokens": _TOKENS,
        "output_tokens": _TOKENS,
        "delay_s": _number(0, _MOST_DELAY_S),
    },
}


def check(request: Message) -> None:
    """Hold a request, and the messages in it, against the rules.

    Raises:
        RequestError: fields break their rules; all that do are named.
    """
    if wrong := list(broken(request)):
        raise RequestError(wrong)


def broken(message: Message, within: str = "") -> Broken:
    """All fields of a request that break their rules, by their paths, and how."""
    for field, rule in _ruled_fields(message.DESCRIPTOR):
        value = getattr(message, field.name)
        path = f"{within}.{field.name}" if within else field.name
        if rule is None:
            yield from broken(value, path)
        elif not field.has_presence or message.HasField(field.name):
            yield from ((f"{path}{below}", wrong) for below, wrong in rule.broken(value))


@cache
def _ruled_fields(kind: Descriptor) -> tuple[tuple[FieldDescriptor, Rule | None], ...]:
    """Fields of a kind of message that have a rule, and (None) those that hold a message which has such fields."""
    rules = RULES.get(kind.name, {})
    fields: list[tuple[FieldDescriptor, Rule | None]] = []
    for field in kind.fields:
        rule = _RUN_ID if field.name == "run_id" else rules.get(field.name)
        single = field.message_type is not None and field.has_presence
        if rule is not None or (single and _ruled_fields(field.message_type)):
            fields.append((field, rule))
    return tuple(fields)
