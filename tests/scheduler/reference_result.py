"""What a run of the reference engine tells."""

from dataclasses import dataclass, field
from typing import NamedTuple

from tests.scheduler.reference_tiers import ReferenceTier


class ReferenceStep(NamedTuple):
    """One executed step."""

    start_fs: int
    duration_fs: int
    decode_requests: int
    context_tokens: int
    prefill_tokens: int
    chunks: int
    outputs: int
    blocks_used: int  # after the step's allocations


class ReferenceRow(NamedTuple):
    """What became of a request. Times in ps, -1 where it never happened."""

    arrival_ps: int
    first_scheduled_ps: int
    first_token_ps: int
    finish_ps: int
    input_tokens: int
    output_tokens: int  # capped; as asked for where the input alone is too long
    emitted_tokens: int
    preemptions: int
    replica: int
    status: str


@dataclass
class ReferenceResult:
    """A whole run.

    `itl` holds (time between two tokens of one request in fs, how many samples of it), `longest_gaps_fs` the longest
    such time of each request. With a prefix cache `queries` are the tokens that were looked up, `hit_tokens` those of
    each request that were found, `hits` their sum, `queries_again` and `hits_again` what of both is of requests that
    had been preempted, `evictions` the blocks that were forgotten, `cached` those that can be found at the end,
    `tier_waits_fs` how long requests waited for blocks from the `tiers`. With host memory for blocks `swaps` are, of
    each request, how often its blocks went there, and how many were copied.
    """

    steps: list[ReferenceStep] = field(default_factory=list)
    requests: list[ReferenceRow] = field(default_factory=list)
    itl: list[tuple[int, int]] = field(default_factory=list)
    longest_gaps_fs: list[int] = field(default_factory=list)
    queries: int = 0
    hit_tokens: list[int] = field(default_factory=list)
    evictions: int = 0
    swaps: list[tuple[int, int]] = field(default_factory=list)
    cached: int = 0
    queries_again: int = 0
    hits_again: int = 0
    tier_waits_fs: list[int] = field(default_factory=list)
    tiers: list[ReferenceTier] = field(default_factory=list)

    @property
    def hits(self) -> int:
        return sum(self.hit_tokens)
