"""Questions about the device actors of a run, for the process that runs it."""

from __future__ import annotations

from collections.abc import Collection

import grpc

from pimserve.cluster.base.rpc.statuses import RefusedError
from pimserve.cluster.distributed.actor_ledgers import DeviceActorState
from pimserve.cluster.distributed.deployment import Distributed
from pimserve.device_models.plan import FS_PER_S, PJ_PER_J
from pimserve.scheduler.control import RunView
from pimserve.v1 import scheduler_pb2 as sched


class DeviceQueries:
    """Asks where the parts of the run live, once it has been told (`attach`)."""

    def __init__(self) -> None:
        self._runtime: Distributed | None = None

    def attach(self, runtime: Distributed) -> None:
        """The parts of the run have started."""
        self._runtime = runtime

    def answer(self, view: RunView, replicas: Collection[int]) -> sched.GetDevicesResponse:
        """Devices of these replicas, or of all, as they are at a window's end.

        Raises:
            RefusedError: the run's devices are no actors.
        """
        view.ledgers()  # hands on to them all that was executed
        devices = self.devices(view.now_fs)
        if devices is None:
            raise no_actors()
        return of_replicas(devices, replicas)

    def devices(self, now_fs: int) -> sched.GetDevicesResponse | None:
        """All devices, of all that was handed on to them by that time; None where they are no actors."""
        states = None if self._runtime is None else self._runtime.device_states()
        if states is None:
            return None
        return sched.GetDevicesResponse(simulated_s=now_fs / FS_PER_S, devices=map(_message, states))


def no_actors() -> RefusedError:
    """What is said of a run that has no device actors."""
    message = "the devices of this run are no actors; launch it on processes or Ray, with devices"
    return RefusedError(grpc.StatusCode.FAILED_PRECONDITION, message)


def of_replicas(devices: sched.GetDevicesResponse, replicas: Collection[int]) -> sched.GetDevicesResponse:
    """Those of these replicas only, or of all."""
    if not replicas:
        return devices
    chosen = [device for device in devices.devices if device.replica in replicas]
    return sched.GetDevicesResponse(simulated_s=devices.simulated_s, devices=chosen)


def _message(state: DeviceActorState) -> sched.Device:
    ledger = state.ledger
    return sched.Device(
        replica=ledger.replica,
        device=ledger.device,
        host=state.host,
        host_restarts=state.host_restarts,
        steps=ledger.steps,
        busy_s=ledger.busy_fs / FS_PER_S,
        unit_busy_s={unit: busy_fs / FS_PER_S for unit, busy_fs in ledger.unit_fs.items()},
        active_joules=sum(ledger.energy_pj.values()) / PJ_PER_J,
        computed_tokens=ledger.tokens,
        output_tokens=ledger.outputs,
        kv_blocks=ledger.kv_blocks,
        peak_kv_blocks=ledger.peak_kv_blocks,
        weight_bytes=ledger.weight_bytes,
        audited_spans=ledger.audited_rows,
        experts_busy_s=ledger.experts_fs / FS_PER_S,
        kv_blocks_sent=ledger.kv_blocks_sent,
        kv_blocks_received=ledger.kv_blocks_received,
        group=state.group.name,
        kind=state.group.placed.label,
        parts=state.group.parts,
        traffic=[
            sched.DeviceTraffic(
                kind=kind,
                sent=passed.sent,
                sent_bytes=passed.sent_bytes,
                received=passed.received,
                received_bytes=passed.received_bytes,
            )
            for kind, passed in state.traffic.items()
        ],
    )
