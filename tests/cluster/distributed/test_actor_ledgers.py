"""What device actors say takes the place of what the engine says, and is the same to the last bit where all is well."""

from dataclasses import replace

import pytest

from pimserve.cluster.distributed.actor_ledgers import Passed, passed_by_device, with_actors
from pimserve.cluster.distributed.device_port import DevicePort, Devices
from pimserve.cluster.distributed.devices.conservation import Exchanged
from pimserve.cluster.distributed.devices.flows import DISPATCH, KV
from pimserve.cluster.distributed.recovery import Recovery
from tests.cluster.distributed.devices.served import SCENARIOS, linked, run

_FROM_ACTORS = ("steps", "computed_tokens", "output_tokens", "busy_s", "operator_s", "joules")


def nothing(ledger):
    """A ledger that knows only the names of units and operators."""
    return replace(ledger, busy_s=dict.fromkeys(ledger.busy_s, -1.0), operator_s=dict.fromkeys(ledger.operator_s, -1.0))


@pytest.mark.parametrize("name", SCENARIOS)
def test_ledgers_of_actors_are_those_of_the_engine(name):
    served = run(name)
    engine = [log.ledger(log.costs.replica) for log in served.logs]
    unknown = {"steps": 0, "computed_tokens": 0, "output_tokens": 0, "joules": {}}
    with linked(served, 2) as link:
        for block in served.blocks:
            link.take(*block)
        link.close_window(0)
        ledgers = with_actors([replace(nothing(ledger), **unknown) for ledger in engine], link.ledgers())
    for theirs, ours in zip(engine, ledgers, strict=True):
        for field in _FROM_ACTORS:
            mine = getattr(theirs, field)
            if isinstance(mine, dict):  # without what was never used
                assert {key: value for key, value in getattr(ours, field).items() if value} == {
                    key: value for key, value in mine.items() if value
                }
            else:
                assert getattr(ours, field) == mine
        assert (list(ours.busy_s), list(ours.operator_s)) == (list(theirs.busy_s), list(theirs.operator_s))
        assert (ours.itl, ours.clock_fs, ours.passive_joules) == (theirs.itl, theirs.clock_fs, theirs.passive_joules)


class EngineOf:
    """Stands for a shard: hands on what was executed when it is asked for its ledgers."""

    def __init__(self, served, sink):
        self.served, self.sink = served, sink

    def ledgers(self):
        for block in self.served.blocks:
            self.sink(*block)
        return [log.ledger(log.costs.replica) for log in self.served.logs]


def test_whoever_asks_a_shard_is_told_what_its_devices_say(monkeypatch):
    served = run("tp")
    (engine,) = [log.ledger(0) for log in served.logs]
    with linked(served, 2) as link:
        said = link.ledgers

        def one_picojoule_and_one_output_more():
            first, *rest = said()
            energy = dict(first.energy_pj)
            energy[next(iter(energy))] += 10**12
            return [replace(first, energy_pj=energy, outputs=first.outputs + 1), *rest]

        monkeypatch.setattr(link, "ledgers", one_picojoule_and_one_output_more)
        devices = Devices(link, Recovery(None), NoFleet(), {}, None)
        (ledger,) = DevicePort(lambda sink: EngineOf(served, sink), devices, None, keeps=True).ledgers()
    assert sum(ledger.joules.values()) == pytest.approx(sum(engine.joules.values()) + 1, rel=1e-12)
    assert (ledger.output_tokens, ledger.steps) == (engine.output_tokens + 1, engine.steps)


class NoFleet:
    """Stands for a fleet that hands nothing over: one pool, of no replica."""

    spec, numbers, most_tokens, kv_groups = None, (), 0, None

    @property
    def pools(self):
        return (self,)

    def kv_cache(self, *_):
        return None


def test_what_passed_is_summed_by_device_and_kind():
    exchanged = Exchanged(
        sent=[(0, 0, 0, 1, DISPATCH, 5, 50), (0, 0, 0, 2, DISPATCH, 1, 10), (0, 1, 1, 0, KV, 1, 7)],
        received=[(0, 0, 0, 1, DISPATCH, 5, 50), (0, 1, 1, 0, KV, 1, 7)],
    )
    assert passed_by_device(exchanged) == {
        (0, 0): {"dispatch": Passed(sent=6, sent_bytes=60)},
        (0, 1): {
            "kv": Passed(sent=1, sent_bytes=7),
            "dispatch": Passed(received=5, received_bytes=50),
        },
        (1, 0): {"kv": Passed(received=1, received_bytes=7)},
    }
