"""OPT-13B on A100s as DistServe (arXiv 2401.09670) served it: times of steps, and the rate that limits allow."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pimserve.cluster.run.run import serve
from pimserve.cluster.run.summary_schema import ServedSummary
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.cluster.validation.disaggregation_formula import Count, Formula, Positive, Share
from pimserve.cluster.validation.targets import Method
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.kernels import Backend
from pimserve.device_models.plan import FS_PER_S

_REQUESTS = 1500  # arrive in a run: shares of them have a standard error of 0.8 %
_FIRST_RATE = 8.0  # that is tried, requests/s
_ACCURACY = 0.01  # of the rate
_FEEDERS = 4  # replicas for prefill, which nobody waits for, in front of one for decode
_NVLINK_GB_PER_S = 300


class _OptOnA100(Formula):
    """OPT-13B on single A100s, in the measured setting."""

    backend: Backend = "vllm"

    def _document(self) -> dict[str, Any]:
        return {
            "name": "distserve",
            "model": "opt-13b",
            "cluster": {"device": "a100", "devices_per_node": 1},
            "costs": {"setting": "measured", "backend": self.backend},
        }


class StepMs(_OptOnA100):
    """How long a step takes, ms: of one prompt, or of requests that decode."""

    prompt_tokens: Count | None = None
    decodes: Count | None = None
    context_tokens: Count = 544

    def value(self) -> float:
        """From the plan of the device; `context_tokens` are those of each request that decodes."""
        (pool,) = prepare(Scenario.model_validate(self._document())).pools
        decodes = self.decodes or 0
        chunks = [] if self.prompt_tokens is None else [(self.prompt_tokens, 0)]
        shape = shape_of(pool.plan, decodes, decodes * self.context_tokens, chunks, decodes + len(chunks))
        return evaluate(pool.plan, shape).duration_fs / FS_PER_S * 1000


class HighestRate(_OptOnA100):
    """The highest rate of arrivals (Poisson) at which a share of requests, 512 tokens in and 64 out, keeps its limits.

    `both` phases on one device; only `prefill`, where the first token is the last one; or only `decode`, of requests
    whose prompts are computed elsewhere (on four devices, and handed over at 300 GB/s).
    """

    method: ClassVar[Method] = "search"

    phase: Literal["both", "prefill", "decode"]
    ttft_s: Positive
    tpot_s: Positive
    attainment: Share = 0.9

    def value(self) -> float:
        """By bisection, to 1 %."""
        low, high = _FIRST_RATE / 2, _FIRST_RATE
        while self.kept_at(high) >= self.attainment:
            low, high = high, 2 * high
        while self.kept_at(low) < self.attainment:
            low, high = low / 2, low
        while high > low * (1 + _ACCURACY):
            middle = (low * high) ** 0.5
            if self.kept_at(middle) >= self.attainment:
                low = middle
            else:
                high = middle
        return low

    def kept_at(self, rate_per_s: float) -> float:
        """The share of requests that keep their limits at a rate."""
        share = self.serve(rate_per_s).slo.attainment
        assert share is not None  # there are limits, and requests
        return share

    def serve(self, rate_per_s: float) -> ServedSummary:
        """A run at that rate."""
        document = self._document()
        limits = {"ttft_s": self.ttft_s, "tpot_s": self.tpot_s}
        if self.phase != "both":
            del limits["tpot_s" if self.phase == "prefill" else "ttft_s"]
        if self.phase == "decode":
            link = {"gb_per_s": _NVLINK_GB_PER_S, "latency_us": 10}
            document["cluster"]["pools"] = {
                "prefill": {"replicas": _FEEDERS},
                "decode": {"replicas": 1},
                "handover": link,
            }
        outputs = 1 if self.phase == "prefill" else 64
        document["slo"] = limits
        document["workload"] = {
            "num_requests": _REQUESTS,
            "arrival": {"process": "poisson", "rate_per_s": rate_per_s},
            "lengths": {"input": {"kind": "fixed", "tokens": 512}, "output": {"kind": "fixed", "tokens": outputs}},
        }
        summary, _ = serve(prepare(Scenario.model_validate(document)))
        return summary
