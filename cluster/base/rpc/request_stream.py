"""A stream of requests that are sent one by one, as they come up."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

Request = TypeVar("Request")


class RequestStream(Generic[Request]):
    """A call that takes a stream of requests.

    Args:
        method: makes the call, given the requests.

    Attributes:
        call: what gRPC has for it: a future, or an iterator of responses.
    """

    def __init__(self, method: Callable[[Iterator[Request]], Any]) -> None:
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self.call = method(iter(self._requests.get, None))

    def send(self, request: Request) -> None:
        """Put a request on its way."""
        self._requests.put(request)

    def end(self) -> None:
        """Send no more, which ends the thread that feeds the call; also of one that was broken."""
        self._requests.put(None)

    def close(self) -> None:
        """Give up the call."""
        self.end()
        self.call.cancel()
