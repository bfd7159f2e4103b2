"""`devices_per_node: auto`: the fewest devices that hold a model, with room for the longest request in its KV cache.

Whatever the kind of device, its own fit decides: numbers are tried from 1 upwards, and the first one counts on which
the model divides and fits, and on which the KV cache of a data-parallel group holds one request of the longest length:
what vLLM asks for before it starts. Where a fit tells how many devices it takes at least, numbers below are skipped.
"""

from __future__ import annotations

from pimserve.cluster.scenario.document import MOST_DEVICES, Scenario
from pimserve.cluster.scenario.pools import place_pool, routing_of
from pimserve.errors import DoesNotFitError, InputError

_OF_SIZE = ("cluster", "scheduler")  # sections whose errors another number of devices may mend


def sized(scenario: Scenario) -> Scenario:
    """The scenario with a number in place of every `devices_per_node: auto`.

    Raises:
        InputError: no number of devices up to MOST_DEVICES will do, or parts of the scenario do not go together.
    """
    cluster = scenario.cluster
    numbers = {
        name: _fewest(scenario, name)
        for name in scenario.pools
        if scenario.of_pool(name).cluster.devices_per_node == "auto"
    }
    if not numbers:
        return scenario
    if cluster.pools is None:
        return _with(scenario, "", numbers[""])
    for name, number in numbers.items():
        scenario = _with(scenario, name, number)
    return scenario


def _with(scenario: Scenario, name: str, number: int) -> Scenario:
    """The scenario with that many devices in each node of a pool."""
    change = {"devices_per_node": number}
    cluster = scenario.cluster
    if cluster.pools is None or not name:
        return scenario.model_copy(update={"cluster": cluster.model_copy(update=change)})
    pool = getattr(cluster.pools, name).model_copy(update=change)
    pools = cluster.pools.model_copy(update={name: pool})
    return scenario.model_copy(update={"cluster": cluster.model_copy(update={"pools": pools})})


def _fewest(scenario: Scenario, name: str) -> int:
    """Devices in each node of a pool."""
    model = scenario.load_model()
    routing = routing_of(scenario, model)
    wanted = min(scenario.scheduler.max_model_len or model.max_model_len_tokens, model.max_model_len_tokens)
    reasons: dict[int, str] = {}
    refused: InputError | None = None
    number = 1
    while number <= MOST_DEVICES:
        try:
            pool = place_pool(_with(scenario, name, number), name, model, routing)
        except DoesNotFitError as error:
            reasons[number] = str(error)
            if error.least is None:
                break
            number = max(number + 1, -(-error.least // scenario.of_pool(name).cluster.nodes))
            continue
        except InputError as error:
            if error.where.partition(".")[0] not in _OF_SIZE:
                raise
            reasons[number], refused = str(error), error
        else:
            fits = pool.request_tokens(scenario.scheduler)
            if fits >= wanted:
                return number
            reasons[number] = f"the KV cache holds {fits:,} tokens, and the longest request has {wanted:,}"
        number += 1
    if refused is not None and set(reasons.values()) == {str(refused)}:  # whatever the number
        raise refused
    raise InputError(_where(name), _none_does(model.name, reasons))


def _where(name: str) -> str:
    return f"cluster.pools.{name}.devices_per_node" if name else "cluster.devices_per_node"


def _none_does(model: str, reasons: dict[int, str]) -> str:
    """The first and the last reason."""
    shown = dict.fromkeys((next(iter(reasons)), next(reversed(reasons))))
    told = "; ".join(f"with {number:,}: {reasons[number]}" for number in shown)
    return f"auto finds no number up to {MOST_DEVICES:,} that holds {model} ({told})"
