"""Data-parallel groups that wait for each other with prompts, as TensorRT-LLM counts it, step by step."""

from collections.abc import Sequence
from dataclasses import dataclass


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
