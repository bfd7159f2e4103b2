"""Whether scenarios can be run, as far as that is known without running them."""

from __future__ import annotations

import json
from typing import Any

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.loadgen.workload import generate
from pimserve.scheduler.router import make_router
from pimserve.scheduler.run_requests import measured_window

_OF_TRAFFIC = ("workload", "run")  # parts of a scenario; what else matters is of the placement


class Check:
    """Looks at scenarios; at what several of them have in common it looks once."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def see(self, scenario: Scenario) -> None:
        """Place the model on its devices, load the router, and make the requests.

        Raises:
            InputError: it cannot be run.
        """
        document = scenario.model_dump(mode="json", exclude={"name", "slo", "output"})
        traffic = {part: document.pop(part) for part in _OF_TRAFFIC}
        if self._new({**document, "mode": scenario.workload.mode, "seed": scenario.run.seed}):
            prepare(scenario).check()
            make_router(scenario.scheduler.router)
        if self._new(traffic):
            workload = generate(scenario.workload, scenario.run.seed)
            measured_window(workload, scenario.run.warmup_s, scenario.run.cooldown_s)

    def _new(self, document: dict[str, Any]) -> bool:
        key = json.dumps(document, sort_keys=True)
        new = key not in self._seen
        self._seen.add(key)
        return new
