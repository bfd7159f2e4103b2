"""A request as it comes to the reference engine, and as it is there: with tokens and blocks of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.scheduler.reference_result import ReferenceRow

FS_PER_PS = 1000
NEVER = -1


@dataclass
class ReferenceRequest:
    """A request as it comes in. In a closed loop, or where it follows others, nobody knows when it arrives.

    `arrival_fs` is None then. It is sent `think_ps` after the last one of `parents`, which are before it, has ended.
    """

    arrival_fs: int | None
    input_tokens: int
    output_tokens: int
    parents: tuple[int, ...] = ()
    think_ps: int = 0


@dataclass(eq=False)
class ServedRequest:
    """A request inside the reference engine; times in fs."""

    number: int
    arrival: int
    input: int
    output: int
    most: int  # tokens that it may have, prompt and output, as far as the server knows
    emitted: int = 0
    kv: int = 0  # tokens held
    settled: int = 0  # of these, tokens that were sure to be held before the last step ended: no accepted drafts of it
    prefill_len: int = 0  # tokens known at the latest admission
    brings: bool = False  # its KV cache, maybe from host memory, of all its tokens but the last, and decodes at once
    blocks: int = 0
    group: int = 0
    preemptions: int = 0
    first_scheduled: int = NEVER
    first_token: int = NEVER
    last_token: int = NEVER
    longest_gap: int = 0
    finish: int = NEVER
    status: str = "unfinished"

    @property
    def decoding(self) -> bool:
        return self.kv >= self.prefill_len

    def row(self, replica: int) -> ReferenceRow:
        def ps(time: int) -> int:
            return NEVER if time == NEVER else time // FS_PER_PS

        return ReferenceRow(
            ps(self.arrival),
            ps(self.first_scheduled),
            ps(self.first_token),
            ps(self.finish),
            self.input,
            self.output,
            self.emitted,
            self.preemptions,
            replica,
            self.status,
        )


def served_requests(
    requests: Sequence[ReferenceRequest], max_tokens: Sequence[int], max_model_len: int
) -> list[ServedRequest]:
    """Requests that declare at most so many output tokens, as far as the longest length lets them."""
    everyone: list[ServedRequest] = []
    for asked, declared in zip(requests, max_tokens or [0] * len(requests), strict=True):
        room = max_model_len - asked.input_tokens
        wanted = min(asked.output_tokens, declared) if declared else asked.output_tokens
        output = min(wanted, room) if room >= 1 else wanted
        most = min(asked.input_tokens + declared, max_model_len) if declared else max_model_len
        arrival = NEVER if asked.arrival_fs is None else asked.arrival_fs
        everyone.append(ServedRequest(len(everyone), arrival, asked.input_tokens, output, most))
    return everyone
