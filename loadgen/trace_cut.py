"""A trace as pimserve's own CSV: what is left of it, and what is not."""

from typing import IO

from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.traces import Trace

_AT_ONCE = 1 << 16  # rows


def write_trace(trace: Trace, target: IO[str]) -> None:
    """Write arrivals (s, to the picosecond) and lengths, from which the same requests are read again."""
    target.write("arrival_s,input_tokens,output_tokens\n")
    for begin in range(0, len(trace.arrival_ps), _AT_ONCE):
        columns = (trace.arrival_ps, trace.input_tokens, trace.output_tokens)
        rows = zip(*(column[begin : begin + _AT_ONCE].tolist() for column in columns), strict=True)
        target.writelines(f"{time // PS_PER_S}.{time % PS_PER_S:012d},{i},{o}\n" for time, i, o in rows)


def beside_lengths(trace: Trace) -> list[str]:
    """What a trace knows that times and lengths do not say."""
    said = []
    if trace.blocks is not None:
        ids = len(trace.blocks.values)
        said.append(f"which prefixes prompts share ({ids:,} ids of blocks of {trace.block_tokens} tokens)")
    if trace.sessions is not None and (following := int((trace.sessions.parents.lengths > 0).sum())):
        said.append(f"sessions ({following:,} turns come when they were recorded, and wait for no other)")
    return said
