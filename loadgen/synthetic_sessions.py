"""Sessions of several turns: who sends them, and what a prompt holds of what came before."""

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pimserve.arrays import IntArray
from pimserve.errors import InputError
from pimserve.loadgen.lengths import LengthSpec, Tokens
from pimserve.loadgen.prefix_blocks import SessionPrefixes
from pimserve.loadgen.spec import MAX_REQUESTS, MAX_TOKENS, Spec
from pimserve.loadgen.streams import Streams
from pimserve.loadgen.think_times import ThinkTime, think_times
from pimserve.loadgen.turns import Turns

_MOST_TURNS = 100_000


class SessionsSpec(Spec):
    """Requests come in sessions: each turn is sent when the one before it has ended, and its think time has passed."""

    turns: Annotated[int, Field(ge=1, le=_MOST_TURNS)] | LengthSpec = Field(
        description="turns of a session: a number, or a law as for lengths, of turns in place of tokens"
    )
    num_sessions: int = Field(
        500, ge=1, le=MAX_REQUESTS, description="stop after this many sessions; or earlier, after workload.duration_s"
    )
    max_active: int | None = Field(
        None,
        ge=1,
        le=MAX_REQUESTS,
        description="sessions at most that are active at once (vLLM's --max-active-conversations): others wait at the "
        "client, in the order in which they are due, until the last turn of one has been answered; without arrival "
        "all wait from the beginning, so that clients run one session after another (default: no limit)",
    )
    think_time_s: ThinkTime = Field(
        0.0, description="from the end of a turn until the next one is sent: a number of seconds, or a law"
    )
    document_tokens: int = Field(
        0,
        ge=0,
        le=MAX_TOKENS,
        description="length of a document of its own that each session begins with: the prompt of its first turn has "
        "so many tokens beside lengths.input",
    )
    context: Literal["accumulate", "fresh"] = Field(
        "accumulate",
        description="accumulate: a prompt is all prompts and outputs of the session before it, and lengths.input more "
        "tokens; fresh: just those",
    )
    context_tokens: Tokens | None = Field(
        None,
        description="with accumulate, the most tokens of a prompt: older ones are left out, as chat clients do, which "
        "leaves it no prefix in common with others; default: all are kept, and a prompt that is longer than the model "
        "allows is rejected",
    )

    @model_validator(mode="after")
    def _some_may_wait(self) -> Self:
        if self.max_active is not None and self.max_active > self.num_sessions:
            raise ValueError(f"max_active ({self.max_active}) must be at most num_sessions ({self.num_sessions})")
        return self

    @model_validator(mode="after")
    def _context_accumulates(self) -> Self:
        if self.context_tokens is not None and self.context == "fresh":
            raise ValueError("context_tokens has no effect with context 'fresh'")
        return self

    def sample(self, streams: Streams, sessions: int) -> Turns:
        """Draw the turns of so many sessions: first turns first, then all others, session by session.

        Raises:
            InputError: there are too many.
        """
        if isinstance(self.turns, int):
            counts = np.full(sessions, self.turns)
        else:
            counts = self.turns.sample(streams.rng("turns"), sessions)
        total = int(counts.sum())
        if total > MAX_REQUESTS:
            raise InputError("workload.sessions", f"have {total} turns together; at most {MAX_REQUESTS} can be")
        later = np.repeat(np.arange(sessions), counts - 1)
        rows = sessions + np.arange(len(later))
        first = np.concatenate([[True], np.diff(later) > 0])[: len(later)]
        previous = np.concatenate([np.full(sessions, -1), np.where(first, later, rows - 1)])
        think_ps = np.zeros(total, np.int64)
        think_ps[sessions:] = think_times(self.think_time_s, streams.rng("think times"), len(later))
        return Turns.chains(previous, think_ps, np.concatenate([np.arange(sessions), later]))

    def contexts(self, turns: Turns, new_tokens: IntArray, outputs: IntArray) -> IntArray:
        """(n,) tokens of prompts if none are left out, each with (n,) `new_tokens`, of requests with (n,) outputs.

        Raises:
            InputError: they become longer than any request may be.
        """
        new_tokens = new_tokens + np.where(turns.followers, 0, self.document_tokens)
        if self.context == "fresh":
            return new_tokens
        prompts = new_tokens.tolist()
        said = (new_tokens + outputs).tolist()
        before = [0] * len(prompts)
        for request, parent in zip(turns.followers_by_edge.tolist(), turns.parents.tolist(), strict=True):
            before[request] = before[parent] + said[parent]
            prompts[request] += before[request]
        longest = max(prompts, default=0)
        if self.context_tokens is None and longest > MAX_TOKENS:
            raise InputError(
                "workload.sessions.context_tokens",
                f"a prompt has {longest} tokens, and at most {MAX_TOKENS} can be: give the most that a client keeps",
            )
        return np.array(prompts, np.int64)

    def prompts(self, contexts: IntArray) -> IntArray:
        """(n,) tokens of prompts, of such (n,) contexts."""
        return contexts if self.context_tokens is None else np.minimum(contexts, self.context_tokens)

    def prefixes(self, turns: Turns, contexts: IntArray, outputs: IntArray) -> SessionPrefixes | None:
        """What prompts of such (n,) contexts, and (n,) outputs, begin with; None: nothing in common."""
        if self.context == "fresh":
            return None
        whole = self.prompts(contexts) == contexts
        return SessionPrefixes(turns.session, np.where(whole, contexts + outputs, 0))

    def describe(self) -> str:
        """In a few words."""
        turns = f"{self.turns} turns" if isinstance(self.turns, int) else f"{self.turns.kind} turns"
        active = "" if self.max_active is None else f", at most {self.max_active} active"
        return f"sessions of {turns}, {'all' if self.context == 'accumulate' else 'nothing'} kept in context{active}"
