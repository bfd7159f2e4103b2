"""Data-parallel groups that wait for each other with prompts, so that none steps long while the others have none.

The rule is that of TensorRT-LLM's `attention_dp_config` with `enable_balance` (`_balance_adp_requests` of
tensorrt_llm/_torch/pyexecutor/py_executor.py), and so are its names. In each step groups know of each other who
decodes, and who has a prompt to compute that finds room:

- where all have one, and a free slot, it is computed; where all decode, after `batching_wait_iters` more of such steps,
  so that more prompts come together;
- where some have none, prompts are held back, and only tokens are generated, unless one of the groups does not decode,
  or it has been so for `timeout_iters` steps. These are counted whether there is any prompt or not.
"""

from __future__ import annotations

from collections.abc import Sequence

from pimserve.scheduler.attention_dp_spec import AttentionDpBalanceSpec
from pimserve.scheduler.engine_core import EngineCore


class AttentionDpBalance:
    """Says when the groups of a replica hold prompts back.

    Args:
        spec: the rule.
        cores: the groups.
    """

    def __init__(self, spec: AttentionDpBalanceSpec, cores: Sequence[EngineCore]) -> None:
        self._spec = spec
        self._cores = cores
        self._waited = self._batched = 0  # steps in which some had no prompt, and in which all had one
        self._all_have = self._all_decode = False  # in the step that begins

    def holds(self, preempted: Sequence[bool]) -> bool:
        """Whether there are prompts in the step that begins, and they are held back.

        Args:
            preempted: groups that have just preempted somebody, where nobody is admitted.
        """
        cores, spec = self._cores, self._spec
        pairs = zip(cores, preempted, strict=True)
        have = [core.admission.has_prompt(core.clock, admit=not short) for core, short in pairs]
        self._all_have = all(have) and all(core.admission.has_free_slot for core in cores)
        self._all_decode = all(core.decoding.count for core in cores)
        if not any(have) or not self._all_decode:
            return False
        return self._batched < spec.batching_wait_iters if self._all_have else self._waited + 1 < spec.timeout_iters

    def passed(self, steps: int) -> None:
        """The step that `holds` was asked of is over, and more like it: several where there was no prompt."""
        if not self._all_have:
            self._waited = (self._waited + steps) % self._spec.timeout_iters if self._all_decode else 0
            return
        self._waited = 0
        if self._all_decode:
            self._batched = self._batched + 1 if self._batched < self._spec.batching_wait_iters else 0

    def state(self) -> list[int]:
        """How long groups have waited, as JSON can hold it."""
        return [self._waited, self._batched]

    def restore(self, state: Sequence[int]) -> None:
        """Go on from `state`."""
        self._waited, self._batched = state
