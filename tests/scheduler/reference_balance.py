"""Which data-parallel group takes a request, and when groups wait for each other with prompts (TensorRT-LLM)."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.scheduler.reference_request import ServedRequest


@dataclass
class ReferenceBalance:
    """What all groups know of each other; a step after the other."""

    timeout_iters: int
    batching_wait_iters: int
    waiting_iters: int = 0
    batching_iters: int = 0

    def prompts_go(self, prompts: Sequence[bool], decodes: Sequence[int], max_num_seqs: int) -> bool:
        """Whether prompts of the step are computed, which is counted; given who has some, and how many decode."""
        all_decode = all(count > 0 for count in decodes)
        if all(prompts) and all(count < max_num_seqs for count in decodes):
            self.waiting_iters = 0
            if all_decode:
                if self.batching_iters < self.batching_wait_iters:
                    self.batching_iters += 1
                    return False
                self.batching_iters = 0
            return True
        self.waiting_iters += 1
        if self.waiting_iters >= self.timeout_iters or not all_decode:
            self.waiting_iters = 0
            return True
        return False


def least_loaded(
    waiting: Sequence[Sequence[ServedRequest]], running: Sequence[Sequence[ServedRequest]], left: Sequence[int]
) -> int:
    """The first of the groups with the least load: who waits counts four times, who `left` as if it still ran."""
    load = [4 * len(queue) + len(ran) + gone for queue, ran, gone in zip(waiting, running, left, strict=True)]
    return load.index(min(load))
