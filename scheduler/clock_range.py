"""What a run that exceeds the range of its integers is told."""

from __future__ import annotations

from pimserve.device_models.plan import FS_PER_S, PJ_PER_J
from pimserve.errors import InputError
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.fleet import Fleet

_MOST_STEP_PJ = 2**59


class EnergyRangeError(InputError):
    """Energies of a device exceed what can be counted: it needs one of their keys."""


def out_of_range(fleet: Fleet) -> InputError:
    """What does not fit 64 bit: energies, if those of the largest step come near it, else times."""
    tokens = min(fleet.spec.max_step_tokens(fleet.max_model_len), 2**20)
    most = max(pool.plan.most_step_pj(tokens, fleet.max_model_len) for pool in fleet.pools)
    if most < _MOST_STEP_PJ:
        return clock_ends()
    return EnergyRangeError(
        "cluster.device", f"a step may take {most / PJ_PER_J:.3g} J, more than its picojoules can be counted"
    )


def clock_ends() -> InputError:
    """Times do not fit."""
    return InputError(
        "run",
        f"the simulated clock ends: a step of more than {2**63 / FS_PER_S:,.0f} s, or a run of more "
        f"than {2**63 / PS_PER_S:,.0f} s; is a unit of the device, the links or the arrivals wrong?",
    )
