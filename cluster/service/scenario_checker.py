"""A process that checks scenarios for the server: `python -m pimserve.cluster.service.scenario_checker SETTINGS`.

Whatever a scenario asks for, its model is fitted on its devices here, within a limit of memory, and the server can end
the process at any moment. Requests and answers are documents as JSON on standard input and output, each behind its
length; the first answer comes without a request, when all is imported. One scenario is checked after the other, until
an answer says that it is the last, as much memory is in use.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pimserve.cluster.base.files import disk_is_full
from pimserve.cluster.base.rpc.statuses import RefusedError, violations
from pimserve.cluster.scenario.prepared import Prepared
from pimserve.cluster.service.launch_options import AllowedPlaces
from pimserve.cluster.service.received_scenario import as_yaml, read_scenario
from pimserve.cluster.service.scenario_fields import request_error
from pimserve.errors import InputError, PimserveError, together, tried
from pimserve.v1 import simulation_pb2 as pb

LOG = logging.getLogger("scenario checker")
LENGTH_BYTES = 4
READY: Mapping[str, Any] = {"ready": True}
_KEPT_BYTES = 200_000_000  # that a check may leave behind; the next one would have so much less


def main() -> None:
    """Entry point of the process."""
    settings = json.loads(sys.argv[1])
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a plug-in prints is no answer
    gc.freeze()
    at_rest = _data_bytes()
    if at_rest is not None:
        most = at_rest + int(settings["memory_bytes"])
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        _check_all(requests, answers, settings, at_rest or 0)
    except BrokenPipeError:  # the server is gone
        os._exit(os.EX_IOERR)  # without another try to send what is left


def _check_all(requests: IO[bytes], answers: IO[bytes], settings: Mapping[str, Any], at_rest: int) -> None:
    """Check one scenario after the other; `at_rest` are the bytes that are in use without any."""
    traces = None if settings["traces"] is None else Path(settings["traces"])
    places = AllowedPlaces(tuple(settings["places"]["on"]), settings["places"]["most_hosts"])
    write_message(answers, READY)
    while (request := read_message(requests)) is not None:
        signal.alarm(int(settings["time_s"]) + 1)  # ends the process if the server is gone
        answer = _answer(request, traces, places)
        signal.alarm(0)
        last = "exceeded" in answer or (_data_bytes() or 0) > at_rest + _KEPT_BYTES
        write_message(answers, {**answer, "last": last})
        if last:
            return


def read_message(file: IO[bytes]) -> dict[str, Any] | None:
    """The next document; None when there are no more."""
    head = file.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    length = int.from_bytes(head, "little")
    content = file.read(length)
    if len(content) < length:
        return None
    document: dict[str, Any] = json.loads(content)
    return document


def write_message(file: IO[bytes], document: Mapping[str, Any]) -> None:
    """Send a document."""
    content = json.dumps(document).encode()
    file.write(len(content).to_bytes(LENGTH_BYTES, "little") + content)
    file.flush()


def _answer(request: Mapping[str, Any], traces: Path | None, places: AllowedPlaces) -> dict[str, Any]:
    try:
        return {"checked": _check(request, traces, places)}
    except MemoryError:
        return {"exceeded": "memory"}
    except InputError as error:
        return {"fields": violations(error)}
    except RefusedError as error:
        return {"code": error.code.name, "message": str(error)}
    except PimserveError as error:
        return {"message": str(error)}
    except OSError as error:
        if disk_is_full(error):
            return {"code": "RESOURCE_EXHAUSTED", "message": "the server's disk is full"}
        return {"internal": traceback.format_exc()}
    except Exception:  # noqa: BLE001 whatever it is, the server is told
        return {"internal": traceback.format_exc()}


def _check(request: Mapping[str, Any], traces: Path | None, places: AllowedPlaces) -> dict[str, Any]:
    """What the server wants to know of a scenario; of one to be launched also how it is to be kept.

    Raises:
        PimserveError: it is not acceptable.
    """
    if request["options"] is not None:
        return _check_launch(request, pb.LaunchOptions.FromString(bytes.fromhex(request["options"])), traces, places)
    prepared = _read(request, traces)
    return {
        "name": prepared.scenario.name,
        "model": prepared.model.name,
        "device": prepared.device,
        "replicas": prepared.replicas,
        "devices": sum(pool.devices for pool in prepared.pools),
        "warnings": list(dict.fromkeys(note for pool in prepared.pools for note in pool.replica.warnings)),
    }


def _read(request: Mapping[str, Any], traces: Path | None) -> Prepared:
    overrides, trace = request["overrides"], request["trace"]
    try:
        return read_scenario(request["yaml"], overrides, trace, traces)
    except InputError as error:
        raise request_error(error, overrides, trace) from None


def _check_launch(
    request: Mapping[str, Any], options: pb.LaunchOptions, traces: Path | None, places: AllowedPlaces
) -> dict[str, Any]:
    """How a run is to be kept; what is wrong with its options is told together with what is wrong with its scenario."""
    wrong: list[InputError] = []
    place = tried(wrong, lambda: places.place_of(options))
    prepared = tried(wrong, lambda: _read(request, traces))
    if place is None or prepared is None:
        raise together(wrong)
    places.check_spread(place, prepared)
    scenario = prepared.scenario
    return {"name": scenario.name, "scenario": as_yaml(scenario), "place": place.document()}


def _data_bytes() -> int | None:
    """Private memory that the process has asked for, which is what RLIMIT_DATA limits; None where that is not told."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    match = re.search(r"^VmData:\s+(\d+) kB$", status, re.MULTILINE)
    return None if match is None else int(match[1]) * 1024


if __name__ == "__main__":
    main()
