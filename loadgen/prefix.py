"""What prompts have in common: a system prompt of all, prefixes of groups, and whole prompts that come again.

As the workloads of shared prefixes with which llm-d and inference-perf measure prefix caches: groups x prompts, each of
shared and own tokens.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pimserve.arrays import IntArray
from pimserve.loadgen.length_pairs import LengthsSpec
from pimserve.loadgen.lengths import FixedLength, Tokens, drawn
from pimserve.loadgen.spec import MAX_REQUESTS, MAX_TOKENS, Spec
from pimserve.loadgen.streams import Streams


@dataclass(frozen=True)
class Prompts:
    """Which prompt each of n requests has: `system_tokens` that all have, `shared_tokens` of its group, and its own.

    `group`: (n,) number of the group. `prompt`: (n,) number of the prompt among those of all groups: requests with the
    same one have all tokens in common.
    """

    group: IntArray
    prompt: IntArray
    system_tokens: int
    shared_tokens: int

    def take(self, rows: IntArray) -> "Prompts":
        """Those requests, in that order."""
        return replace(self, group=self.group[rows], prompt=self.prompt[rows])


class PrefixSpec(Spec):
    """What prompts have in common. A prompt is the system prompt, what its group shares, and tokens of its own."""

    system_tokens: int = Field(0, ge=0, le=MAX_TOKENS, description="length of the system prompt, which all begin with")
    groups: int = Field(1, ge=1, le=1_000_000, description="number of groups; each request is of one, drawn at random")
    shared_tokens: int = Field(0, ge=0, le=MAX_TOKENS, description="length of what prompts of a group share after it")
    prompts_per_group: int | None = Field(
        None,
        ge=1,
        le=MAX_REQUESTS,
        description="number of different prompts of a group; each request has one; left out: every request has a "
        "prompt of its own",
    )
    order: Literal["random", "shuffled"] = Field(
        "random",
        description="random: each request has any group, and any of its prompts; shuffled: all prompts in one random "
        "order, over and over, from its beginning in each stage of the rate, as inference-perf sends them",
    )
    own_tokens: Tokens | None = Field(
        None, description="length of a prompt after what it shares, in place of lengths.input, which else draws it"
    )
    zipf_theta: float = Field(
        0.0, ge=0, le=20, description="popularity of groups: the k-th has the weight k^-zipf_theta; 0: all alike"
    )

    @model_validator(mode="after")
    def _shares_something(self) -> Self:
        if not self.system_tokens and not self.shared_tokens and self.prompts_per_group is None:
            raise ValueError("prompts share nothing: give system_tokens, shared_tokens or prompts_per_group")
        if self.groups * (self.prompts_per_group or 1) > MAX_REQUESTS:
            raise ValueError(f"groups times prompts_per_group must be at most {MAX_REQUESTS}")
        if self.order == "shuffled" and (self.prompts_per_group is None or self.zipf_theta):
            raise ValueError(
                "order 'shuffled' needs prompts_per_group, and excludes zipf_theta: every prompt has a turn"
            )
        return self

    def lengths(self, lengths: LengthsSpec) -> LengthsSpec:
        """Laws of what prompts have of their own, and of outputs."""
        if self.own_tokens is None:
            return lengths
        return LengthsSpec(input=FixedLength(kind="fixed", tokens=self.own_tokens), output=lengths.output)

    def sample(self, streams: Streams, place: IntArray) -> Prompts:
        """Draw the prompts of n requests. `place`: (n,) the number of each in its stage of the rate, from 0 up."""
        n = len(place)
        if self.order == "shuffled" and self.prompts_per_group is not None:
            shuffled = streams.rng("prefix order").permutation(self.groups * self.prompts_per_group)
            prompt = shuffled[place % len(shuffled)]
            return Prompts(prompt // self.prompts_per_group, prompt, self.system_tokens, self.shared_tokens)
        weights = np.arange(1, self.groups + 1, dtype=np.float64) ** -self.zipf_theta
        group = drawn(streams.rng("prefix groups"), weights, n)
        if self.prompts_per_group is None:
            prompt = np.arange(n)
        else:
            chosen = streams.rng("prefix prompts").integers(self.prompts_per_group, size=n)
            prompt = group * self.prompts_per_group + chosen
        return Prompts(group, prompt, self.system_tokens, self.shared_tokens)

    def describe(self) -> str:
        """In a few words."""
        prompts = "" if self.prompts_per_group is None else f" x {self.prompts_per_group} prompts"
        order = ", in one order over and over" if self.order == "shuffled" else ""
        return f"{self.system_tokens} + {self.shared_tokens} tokens shared by {self.groups} groups{prompts}{order}"


def check_lengths(lengths: LengthsSpec | None, prefix: PrefixSpec | None) -> None:
    """Raises ValueError unless laws of lengths, if any, go together with what prompts have in common."""
    own = prefix is not None and prefix.own_tokens is not None
    if lengths is None:
        return
    if lengths.joint is None and (lengths.input is None) != own:
        raise ValueError("lengths needs either input, or prefix.own_tokens in its place")
    if lengths.joint is not None and prefix is not None and (own or prefix.prompts_per_group is not None):
        raise ValueError(
            "lengths.joint excludes prefix.own_tokens and prefix.prompts_per_group: each request has its own"
        )
