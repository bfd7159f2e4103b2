"""Documents whose sizes are at their bounds are checked within the limits of a check, or refused in clear words."""

from collections import Counter

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from pimserve.cluster.base.rpc.statuses import RefusedError
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.service.checker_pool import CheckerPool
from pimserve.cluster.service.launch_options import USUAL_PLACES
from pimserve.cluster.service.limits import CheckLimits
from pimserve.device_models.aimc.aimc_spec import AimcSpec
from pimserve.device_models.duplex import DuplexSpec
from pimserve.device_models.gpu_spec import GpuSpec
from pimserve.device_models.model import ModelSpec
from pimserve.errors import PimserveError
from pimserve.v1 import simulation_pb2 as pb
from tests.cluster.scenario.test_bounds import numbers_of
from tests.examples import examples, number

DEVICES = {"h100": GpuSpec, "duplex": DuplexSpec, "aimc-realistic": AimcSpec}
MODELS = ["mixtral-8x7b", "deepseek-v3", "llama-3.1-8b", "gpt2-medium"]


# Sections whose sizes mean nothing without others beside them, so that nearly all of them would be refused.
NOT_ALONE = {"faults", "workload", "published", "autoscaling", "router", "speculative"}

TRIED = 200


class Endless:
    """The context of a call that goes on."""

    def is_active(self):
        return True


def bounds(document, below):
    """(path in a scenario, the largest and the smallest that may stand there) of numbers, but for those in lists."""
    found = []
    for path, schema in numbers_of(document):
        keys = path.split(".")[1:]
        if "*" in keys or NOT_ALONE & set(keys) or "enum" in schema or "const" in schema:
            continue
        if {"pools", "placement"} <= set(keys):  # as those of a cluster without pools
            continue
        whole = schema["type"] == "integer"
        most = schema.get("maximum", schema.get("exclusiveMaximum", 1) - (1 if whole else 0))
        least = schema.get("minimum", schema.get("exclusiveMinimum", 0) + (1 if whole else 1e-3))
        found.append((".".join((*below, *keys)), (most, least)))
    return found


OF_SCENARIO = bounds(Scenario, ()) + bounds(ModelSpec, ("model",))
OF_DEVICES = {device: bounds(spec, ("cluster", "device")) for device, spec in DEVICES.items()}


@st.composite
def documents(draw):
    """A scenario of the catalogue with a few sizes at their bounds, more often the upper one."""
    device, model = draw(st.sampled_from(sorted(DEVICES))), draw(st.sampled_from(MODELS))
    document = {"model": {"preset": model}, "cluster": {"device": {"preset": device}}}
    chosen = draw(st.lists(st.sampled_from(OF_SCENARIO + OF_DEVICES[device]), min_size=1, max_size=4))
    for path, (most, least) in chosen:
        *parents, last = path.split(".")
        place = document
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = draw(st.sampled_from([most, most, least]))
    if "placement" in document["cluster"]:
        document["cluster"]["placement"].setdefault("experts", {})
    return document


@pytest.mark.slow
@pytest.mark.server
def test_what_is_at_the_bounds_is_checked_within_the_limits_or_refused_clearly():
    checkers = CheckerPool(None, USUAL_PLACES, CheckLimits(time_s=20, memory_bytes=2 << 30, processes=1))
    outcomes = Counter()

    @examples(TRIED, suppress_health_check=list(HealthCheck))
    @given(documents())
    def checked(document):
        try:
            checkers.check(pb.ScenarioDocument(yaml=yaml.safe_dump(document)), None, Endless())
        except RefusedError as error:
            outcomes[str(error)] += 1
        except PimserveError:  # an internal error, or a process that dies, is none
            outcomes["refused"] += 1
        else:
            outcomes["good"] += 1

    checked()
    checkers.close()
    exceeded = {text for text in outcomes if text not in {"good", "refused"}}
    assert all("takes longer than" in text or "MB of memory" in text for text in exceeded), outcomes
    assert min(outcomes["good"], outcomes["refused"]) > number(TRIED) // 5, outcomes
