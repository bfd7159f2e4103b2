"""A queue policy as a package of its own: short prompts first, but nobody waits for ever."""

from __future__ import annotations

from typing import Any

PS_PER_TOKEN = 10**9  # a prompt that is one token longer is as good as one that came a millisecond later


class ShortestPrompt:
    """The request with the shortest prompt, with ageing.

    Each waits as if it had arrived so much later as its prompt is long. Of two that wait, their order never changes, so
    one number says it; a request is behind those only that come within a time that hangs on its prompt.
    """

    def key(self, request: Any) -> int:
        """The lowest is admitted next; the same whenever it is asked. `request` is a `QueuedRequest`."""
        return int(request.arrival_ps) + PS_PER_TOKEN * int(request.input_tokens)
