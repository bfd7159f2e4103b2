"""What requests may hold: a table of ranges, which every request is held against before anything looks at it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from pimserve.cluster.base.speed import FASTEST, SLOWEST
from pimserve.errors import InputError, shortened

Rule = Callable[[Any], str | None]  # what is wrong with a value, or None

MAX_SCENARIO_BYTES = 1 << 20
MAX_INJECTED = 10_000
MAX_PAGE = 1000
_MAX_TOKENS = 10**6
_MOST_DELAY_S = 1e6


def _number(low: float, high: float, *, or_zero: bool = False) -> Rule:
    text = f"must be {f'{low:g}'} to {high:,.12g}{', or 0' if or_zero else ''}"

    def check(value: float) -> str | None:
        if (or_zero and value == 0) or (math.isfinite(value) and low <= value <= high):
            return None
        return f"{text} (got {value:g})"

    return check


def _text(most_bytes: int, *, needed: bool = False, pattern: str | None = None, what: str = "") -> Rule:
    form = re.compile(pattern) if pattern else None

    def check(value: str) -> str | None:
        if needed and not value:
            return "is missing"
        if (size := len(value.encode())) > most_bytes:
            return f"has {size:,} bytes; {most_bytes:,} are allowed"
        if value and form is not None and not form.fullmatch(value):
            return f"must be {what} (got {shortened(repr(value))})"
        return None

    return check


def _each(rule: Rule, *, at_least: int = 0, at_most: int) -> Rule:
    def check(values: Iterable[Any]) -> str | None:
        entries = list(values)
        if not at_least <= len(entries) <= at_most:
            return f"must have {at_least:,} to {at_most:,} entries (got {len(entries):,})"
        return next((wrong for wrong in map(rule, entries) if wrong), None)

    return check


_RUN_ID = _text(64, needed=True)  # whatever it is made of: what no run has is not found
_TOKENS = _each(_number(1, _MAX_TOKENS), at_least=1, at_most=MAX_INJECTED)

# Message -> field -> rule. A field that is not here may hold anything that its type can.
RULES: Mapping[str, Mapping[str, Rule]] = {
    "ScenarioDocument": {
        "yaml": _text(MAX_SCENARIO_BYTES),
        "overrides": _each(_text(10_000), at_most=1000),
        "trace": _text(1000),
    },
    "LaunchOptions": {
        "speed": _number(SLOWEST, FASTEST, or_zero=True),
        "on": _text(300),
        "shards": _number(1, 4096),
        "devices": _number(0, 3),
        "devices_per_actor": _number(1, 10**6),
        "resource": _each(_text(200, needed=True), at_most=16),
        "host_timeout_s": _number(2, 3600),
    },
    "LaunchRequest": {
        "idempotency_key": _text(128, pattern=r"[\x21-\x7e]+", what="up to 128 visible ASCII characters")
    },
    "ListRequest": {
        "page_size": _number(0, MAX_PAGE),
        "page_token": _text(20, pattern=r"[1-9][0-9]{0,17}", what="the next_page_token of another page"),
        "states": _each(_number(1, 7), at_most=7),
    },
    "WatchRequest": {"interval_s": _number(0.05, 60, or_zero=True)},
    "FollowRequest": {"interval_s": _number(0.05, 60)},
    "GetResultsRequest": {"names": _each(_text(100, needed=True), at_most=100)},
    "DescribeRequestRequest": {"request": _number(0, 2**63 - 1)},
    "GetLatenciesRequest": {"percentiles": _each(_number(1e-6, 100), at_most=100)},
    "GetDevicesRequest": {"replicas": _each(_number(0, 2**32 - 1), at_most=10_000)},
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


def check(request: Message, within: str = "") -> None:
    """Hold a request, and the messages in it, against the rules.

    Raises:
        InputError: a field breaks its rule; all that do are named, a line each.
    """
    if wrong := list(_broken(request, within)):
        raise InputError("", "\n".join(f"{path}: {message}" for path, message in wrong))


def _broken(message: Message, within: str) -> Iterable[tuple[str, str]]:
    for field, rule in _ruled_fields(message.DESCRIPTOR):
        value = getattr(message, field.name)
        path = f"{within}.{field.name}" if within else field.name
        if rule is None:
            yield from _broken(value, path)
        elif (not field.has_presence or message.HasField(field.name)) and (wrong := rule(value)):
            yield path, wrong


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
