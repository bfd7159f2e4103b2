"""Write a trace for the benchmarks: python traffic.py REQUESTS RATE_PER_S PATH; prints where its lengths come from.

Poisson arrivals. Lengths are resampled, in pairs, from the public slice of the Azure 2023 conversation trace if
PIMSERVE_TRACES or ../shared/traces beside the repository has it; else drawn from the embedded law with the trace's
statistics. Same arguments, same file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.traces import TraceSpec, load_trace
from pimserve.loadgen.workload import WorkloadSpec, generate

_SEED = 2023
_SLICE = "azure_llm_2023_conv_0000-1800s.csv.gz"
_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "traces"


def write_trace(requests: int, rate_per_s: float, path: Path) -> str:
    """Write the trace (arrival_s,input_tokens,output_tokens); returns the origin of its lengths."""
    spec = {
        "preset": "azure-conv-2023",
        "num_requests": requests,
        "arrival": {"process": "poisson", "rate_per_s": rate_per_s},
    }
    workload = generate(WorkloadSpec.model_validate(spec), _SEED)
    inputs, outputs, origin = workload.input_tokens, workload.output_tokens, "embedded law"
    real = Path(os.environ.get("PIMSERVE_TRACES") or _BESIDE) / _SLICE
    if real.exists():
        trace = load_trace(TraceSpec(format="azure", path=str(real)))
        rows = np.random.default_rng(_SEED).integers(len(trace.input_tokens), size=requests)
        inputs, outputs, origin = trace.input_tokens[rows], trace.output_tokens[rows], "trace, resampled"
    columns = (workload.arrival_ps.tolist(), inputs.tolist(), outputs.tolist())
    with path.open("w", encoding="ascii") as file:
        file.write("arrival_s,input_tokens,output_tokens\n")
        file.writelines(f"{at / PS_PER_S:.6f},{prompt},{output}\n" for at, prompt, output in zip(*columns, strict=True))
    return origin


if __name__ == "__main__":
    print(write_trace(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])))
