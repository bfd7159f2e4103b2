"""What DistServe (arXiv 2401.09670) says of the wait for prefill: its queueing formulas, and the engine beside them."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from pimserve.cluster.validation.disaggregation_formula import Formula, Positive
from pimserve.cluster.validation.targets import Method
from pimserve.device_models.plan import FS_PER_S, CostPlan, RowTerm
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.workload import Workload
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.fleet import Pool
from pimserve.scheduler.simulation import Served, simulate

Split = Literal["none", "inter_op", "intra_op"]
_REQUESTS = 100_000
_SEED = 1


class MeanTtft(Formula):
    """Mean time to first token of prompts that are alike, one after the other, as the engine serves them.

    `inter_op`: on two devices with half of the layers each, so that a prompt may be on each of them. `intra_op`: on
    devices that compute one prompt together, `speedup` times as fast.
    """

    method: ClassVar[Method] = "engine"

    prompt_s: Positive
    rate_per_s: Positive
    split: Split = "none"
    speedup: Positive = Field(1.0, description="with intra_op")

    def closed_form_s(self) -> float:
        """The paper's: D + R D^2 / (2 (1 - R D)); inter-op D + R D^2 / (4 (2 - R D)); intra-op, with a speed-up of K,
        D / K + R D^2 / (2 K (K - R D)).
        """
        d, r, k = self.prompt_s, self.rate_per_s, self.speedup
        if self.split == "inter_op":
            return d + r * d**2 / (4 * (2 - r * d))
        if self.split == "intra_op":
            return d / k + r * d**2 / (2 * k * (k - r * d))
        return d + r * d**2 / (2 * (1 - r * d))

    def served(self, requests: int = _REQUESTS, seed: int = _SEED) -> Served:
        """So many prompts through the engine, which computes one of them in a step."""
        return serve_prompts(self._stage_s, self._later_s, self.rate_per_s, requests, seed)

    def value(self) -> float:
        """Mean over a hundred thousand prompts that arrive at random (Poisson)."""
        served = self.served()
        return float(served.latencies(np.arange(len(served.table)))["ttft"].known_s.mean())

    @property
    def _stage_s(self) -> float:
        """How long a prompt keeps the next one waiting."""
        return self.prompt_s / {"none": 1.0, "inter_op": 2.0, "intra_op": self.speedup}[self.split]

    @property
    def _later_s(self) -> float:
        """What follows on the second device: nobody waits there, as prompts come one stage time apart at least."""
        return self.prompt_s - self._stage_s if self.split == "inter_op" else 0.0


def serve_prompts(step_s: float, later_s: float, rate_per_s: float, requests: int, seed: int) -> Served:
    """Prompts that arrive at random, one in a step, each of which needs more time that keeps nobody waiting.

    Args:
        step_s: of a prompt.
        later_s: more time of a prompt.
        rate_per_s: of arrivals (Poisson).
        requests: how many.
        seed: of arrivals.
    """
    step = RowTerm("layers", "fc", "xpu", "tokens", ((round(step_s * FS_PER_S), 0),))
    plan = CostPlan(1, 1, ("xpu",), (step,), (), (), None, frontend_ps=round(later_s * PS_PER_S))
    gaps_s = np.random.default_rng(seed).exponential(1 / rate_per_s, requests)
    at_ps = np.rint(np.cumsum(gaps_s) * PS_PER_S).astype(np.int64)
    ones = np.ones(requests, np.int64)
    workload = Workload(at_ps, ones, ones, None, None, "", seed, {})
    spec = SchedulerSpec(max_num_seqs=1)
    return simulate([Pool("", plan, spec.block_size)], workload, spec, max_model_len=spec.block_size)
