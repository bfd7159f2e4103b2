"""Upper bounds of the histograms' buckets: dense ones of our own, and those of vLLM among them.

How far off a quantile is that Prometheus reads: `histogram_quantile(q, ...)` looks for the bucket (a, b] in which the
cumulative count reaches q n, which is the one that holds the sample of nearest rank, ceil(q n), and takes a point
between a and b by the rank's place among the bucket's samples. Both lie in (a, b], the sample anywhere: it may be just
above a where the point is b (the last of a bucket whose samples are all small), or b where the point is near a. So the
error is below (b - a) / a = ratio - 1 of the sample, and no interpolation does better on every set of samples. (Where
q n is whole, it may be a little more in floating point: 0.07 of 100 samples is then the 8th, not the 7th.) 25 bounds
per decade are a ratio of 10**(1/25) = 1.0965, which rounding to four digits raises to 1.0971: within 9.8 %, with the
2**-12 by which histograms of steps and gaps may take a sample for one beyond a bound.
"""

from __future__ import annotations

_PER_DECADE = 25
_LOW, _HIGH = -4, 3  # powers of ten
SECONDS_FROM, SECONDS_TO = 10.0**_LOW, 10.0**_HIGH  # between these a quantile is within a tenth
_BELOW, _ABOVE = (1e-5, 2e-5, 5e-5), (2e3, 5e3, 1e4)  # and coarse ones beyond

# vLLM 0.33, vllm/v1/metrics/loggers.py.
_VLLM_TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
_VLLM_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_VLLM_E2E = (*(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680),)
_VLLM_STEP_TOKENS = (1, *(2**power for power in range(3, 15)))


def _seconds(*more: float) -> tuple[float, ...]:
    """Our own bounds, s, and `more`."""
    steps = range(_LOW * _PER_DECADE, _HIGH * _PER_DECADE + 1)
    dense = (float(f"{10 ** (step / _PER_DECADE):.4g}") for step in steps)
    return tuple(sorted({*_BELOW, *dense, *_ABOVE, *map(float, more)}))


SECONDS = _seconds()
TTFT, ITL, E2E = _seconds(*_VLLM_TTFT), _seconds(*_VLLM_ITL), _seconds(*_VLLM_E2E)
LENGTHS = tuple(digit * 10**power for power in range(7) for digit in (1, 2, 5))  # as vLLM's, up to 5 million tokens
VLLM_BOUNDS = {
    "vllm:time_to_first_token_seconds": _VLLM_TTFT,
    "vllm:inter_token_latency_seconds": _VLLM_ITL,
    "vllm:request_time_per_output_token_seconds": _VLLM_ITL,
    "vllm:e2e_request_latency_seconds": _VLLM_E2E,
    "vllm:request_queue_time_seconds": _VLLM_E2E,
    "vllm:request_prefill_time_seconds": _VLLM_E2E,
    "vllm:request_decode_time_seconds": _VLLM_E2E,
    "vllm:request_prompt_tokens": LENGTHS,  # of these, those up to max_model_len
    "vllm:request_generation_tokens": LENGTHS,
    "vllm:iteration_tokens_total": _VLLM_STEP_TOKENS,
}
