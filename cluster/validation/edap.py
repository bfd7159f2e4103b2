"""Energy x delay x area of a GEMM with few rows on the three memory-side units (arXiv 2409.01141, fig. 8).

Per weight element: energy is 16 bits over the unit's path, their share of a row activation, and m multiply-accumulates;
delay is the larger of 16 bits over the unit's bandwidth and m multiply-accumulates over its peak. The paper publishes
neither areas nor the energy of logic in a DRAM process. Equal areas and a multiply-accumulate that takes 2.3 times as
much energy in the DRAM dies (Bank-PIM, BankGroup-PIM) as on the logic die fit its printed figures; both are fitted.
"""

from __future__ import annotations

from functools import cache

from pimserve.device_models.duplex import DuplexSpec
from pimserve.device_models.registry import load_device

DRAM_PROCESS_MAC = 2.3

_UNITS = {"Bank-PIM": "duplex-bank-pim", "BankGroup-PIM": "duplex-bankgroup-pim", "Logic-PIM": "duplex"}
_IN_DRAM_DIES = ("Bank-PIM", "BankGroup-PIM")
UNITS = tuple(_UNITS)


def normalised_edap(unit: str, rows: float) -> float:
    """EDAP of one of `UNITS` for a GEMM of `rows` rows (its Op/B), over that of the worst of the three."""
    return _energy_delay(unit, rows) / max(_energy_delay(other, rows) for other in UNITS)


@cache
def _energy_delay(unit: str, rows: float) -> float:
    spec = load_device(_UNITS[unit]).spec
    assert isinstance(spec, DuplexSpec)
    mac_pj = spec.energy.mac_pj * (DRAM_PROCESS_MAC if unit in _IN_DRAM_DIES else 1.0)
    energy = 2 * spec.energy.per_byte_pj(spec.pim.pj_per_bit) + rows * mac_pj
    # In units of 16 bits over the memory's nominal bandwidth; a multiply-accumulate is two FLOPs.
    delay = max(1.0, rows / spec.pim.flop_per_byte) / spec.pim.bandwidth_multiple
    return energy * delay
