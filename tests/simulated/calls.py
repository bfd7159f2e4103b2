"""Both ends of a call, as gRPC shows them: to its maker a future or an iterator, to the service a context."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from tests.simulated.active import world
from tests.simulated.loop import Process, Timer
from tests.simulated.waiting import Bell

if TYPE_CHECKING:
    from tests.simulated.network import Link

Metadata = tuple[tuple[str, Any], ...]
Code = grpc.StatusCode


class ClientCall(grpc.RpcError, grpc.Call, grpc.Future):  # type: ignore[misc]
    """A call, as the one sees it who made it."""

    def __init__(self, process: Process, method: str, parse: Callable[[bytes], Any], *, streams: bool) -> None:
        super().__init__(method)
        self.process = process
        self.method = method
        self.link: Link | None = None
        self.server_end: ServerCall | None = None
        self.deadline: Timer | None = None
        self._parse = parse
        self._streams = streams
        self._answers: deque[Any] = deque()
        self._status: tuple[Code, str, Metadata] | None = None
        self._ending = False  # its status is on the way
        self._bell = Bell()
        self._callbacks: list[Callable[[Any], None]] = []

    def __str__(self) -> str:
        return f"{self.method}: {self._status}"

    # What the network does.

    def take(self, data: bytes) -> None:
        """An answer has come."""
        if self._status is None:
            self._answers.append(self._parse(data))
            self._bell.ring()

    def finish(self, code: Code, details: str, trailing: Metadata = ()) -> None:
        """The call has ended."""
        if self._status is not None:
            return
        world().loop.note("status", self.process.name, self.method.rpartition("/")[2], code.name, details[:60])
        self._status = code, details, trailing
        if self.deadline is not None:
            self.deadline.cancel()
        if self.link is not None:
            self.link.calls.pop(self, None)
        self._bell.ring()
        for callback in self._callbacks:
            self._call_back(callback)
        self._callbacks.clear()

    def _call_back(self, callback: Callable[[Any], None]) -> None:
        if not self.process.dead:
            world().loop.spawn(self.process, lambda: callback(self), "callback")

    # What gRPC's users see.

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._bell.wait(lambda: self._answers or self._status)
        if self._answers:
            return self._answers.popleft()
        assert self._status is not None
        if self._status[0] is Code.OK:
            raise StopIteration
        raise self

    def result(self, timeout: float | None = None) -> Any:
        self._bell.wait(lambda: self._status)
        assert self._status is not None
        if self._status[0] is not Code.OK:
            raise self
        return self._answers[0]

    def exception(self, timeout: float | None = None) -> Exception | None:
        self._bell.wait(lambda: self._status)
        return None if self.code() is Code.OK else self

    def traceback(self, timeout: float | None = None) -> None:
        return None

    def code(self) -> Code:
        self._bell.wait(lambda: self._status)
        assert self._status is not None
        return self._status[0]

    def details(self) -> str:
        self.code()
        assert self._status is not None
        return self._status[1]

    def trailing_metadata(self) -> Metadata:
        self.code()
        assert self._status is not None
        return self._status[2]

    def initial_metadata(self) -> Metadata:
        return ()

    def is_active(self) -> bool:
        return self._status is None

    def running(self) -> bool:
        return self._status is None

    def done(self) -> bool:
        return self._status is not None

    def cancelled(self) -> bool:
        return self._status is not None and self._status[0] is Code.CANCELLED

    def time_remaining(self) -> float | None:
        raise NotImplementedError

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if self._status is not None:
            return False
        self._callbacks.append(lambda _: callback())
        return True

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._status is not None:
            callback(self)
        else:
            self._callbacks.append(callback)

    def cancel(self) -> bool:
        world().loop.check()
        return self.give_up(Code.CANCELLED, "Locally cancelled by application!")

    def give_up(self, code: Code, details: str) -> bool:
        """End it from this end; the other hears of it."""
        if self._status is not None:
            return False
        if self.server_end is not None and self.link is not None:
            self.link.carry(self, "there", self.server_end.drop)
        self.finish(code, details)
        return True


class ServerCall(grpc.ServicerContext):  # type: ignore[misc]
    """A call, as the service sees it, and the iterator of its requests."""

    def __init__(self, client: ClientCall, link: Link, process: Process, metadata: Metadata, ends_s: float) -> None:
        self.client = client
        self.link = link
        self.process = process
        self.over = False  # an answer was given, or nobody waits for one
        self.dropped = False
        self._metadata = metadata
        self._ends_s = ends_s
        self._trailing: Metadata = ()
        self._requests: deque[bytes] = deque()
        self._whole = False
        self._bell = Bell()
        self._callbacks: list[Callable[[], None]] = []
        self.aborted: tuple[Code, str, Metadata] | None = None

    def put(self, data: bytes) -> None:
        """A request has come."""
        self._requests.append(data)
        self._bell.ring()

    def close(self) -> None:
        """No more requests come."""
        self._whole = True
        self._bell.ring()

    def drop(self) -> None:
        """The client has given up, or is gone."""
        if self.over:
            return
        self.over = self.dropped = True
        self._bell.ring()
        for callback in self._callbacks:
            if not self.process.dead:
                world().loop.spawn(self.process, callback, "callback")
        self._callbacks.clear()

    def answer(self, data: bytes) -> None:
        """An answer goes back."""
        if not self.over:
            self.link.carry(self.client, "back", lambda: self.client.take(data))

    def end(self, code: Code, details: str, trailing: Metadata) -> None:
        """The status goes back."""
        if not self.over:
            self.over = True
            self.link.carry(self.client, "back", lambda: self.client.finish(code, details, trailing))

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._bell.wait(lambda: self.over or self._requests or self._whole)
        if self.over:
            raise grpc.RpcError
        if not self._requests:
            raise StopIteration
        return self._requests.popleft()

    # What services use of a context.

    def is_active(self) -> bool:
        world().loop.give_way()
        return not self.over

    def time_remaining(self) -> float | None:
        return None if self._ends_s == float("inf") else max(0.0, self._ends_s - world().loop.now_s)

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if self.over:
            return False
        self._callbacks.append(callback)
        return True

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        self._trailing = trailing_metadata

    def abort(self, code: Code, details: str) -> NoReturn:
        self.aborted = code, details, self._trailing
        raise Exception  # noqa: TRY002 as gRPC does it

    def abort_with_status(self, status: Any) -> NoReturn:
        self._trailing = tuple(status.trailing_metadata or ())
        self.abort(status.code, status.details)

    def cancel(self) -> bool:
        self.drop()
        return True

    def peer(self) -> str:
        return f"ipv4:{self.client.process.name}"

    def peer_identities(self) -> None:
        return None

    def peer_identity_key(self) -> None:
        return None

    def auth_context(self) -> dict[str, Any]:
        return {}

    def send_initial_metadata(self, initial_metadata: Metadata) -> None: ...

    def set_code(self, code: Code) -> None:
        raise NotImplementedError

    def set_details(self, details: str) -> None:
        raise NotImplementedError
