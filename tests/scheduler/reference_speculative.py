"""What steps that verify drafts give a request, for the reference engine: one draw of one request in one step."""

from pimserve.scheduler.acceptance import STEPS, Acceptance
from pimserve.scheduler.speculative_spec import SpeculativeSpec


class ReferenceDrafts:
    """Tokens of each decoding request in a step; without drafts one, which is its own."""

    def __init__(self, spec: SpeculativeSpec | None, seed: int) -> None:
        self.verify_tokens = 1 if spec is None else spec.num_speculative_tokens + 1
        self._acceptance = None if spec is None else Acceptance(spec, seed)
        # The last block that a prompt finds is computed all the same.
        self.last_again = spec is not None and spec.method == "mtp"
        self.slots = 0  # in the KV cache, beyond the tokens of a request
        if spec is not None:
            self.slots = spec.num_speculative_tokens * (1 if spec.method == "ngram" else 2)

    def tokens(self, request: int, step: int) -> int:
        """Of the request of that number in that step: its drafts up to the first that is not accepted, and one."""
        acceptance = self._acceptance
        return 1 if acceptance is None else int(acceptance.emitted[(acceptance.place(request) + step) % STEPS])
