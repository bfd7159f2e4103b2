"""Input and output lengths of requests: drawn independently, each from a law, or together."""

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pimserve.arrays import IntArray
from pimserve.loadgen.lengths import LengthSpec, Tokens, Weights, check_no_file, check_weights, drawn
from pimserve.loadgen.spec import Spec
from pimserve.loadgen.streams import Streams
from pimserve.loadgen.traces import Trace

_Pair = tuple[Tokens, Tokens]


class PairsJoint(Spec):
    """One of some pairs, as often as its weight says."""

    kind: Literal["pairs"]
    pairs: tuple[_Pair, ...] = Field(min_length=1, description="[[input, output], ...], tokens; or `file`")
    weights: Weights | None = Field(None, description="how often each of them is; default: all alike")
    file: str | None = Field(
        None,
        description="pairs, from a CSV file, each as often as it is there (looked for in the scenario's folder, then "
        "in the working folder)",
    )
    columns: tuple[str, str] | None = Field(
        None, description="of that file, by name: input, output; default: the only two, without a header"
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        check_weights(self.weights, len(self.pairs), "pairs")
        check_no_file(self.file, self.columns, "pairs")
        return self

    def sample(self, rng: np.random.Generator, n: int, _: Trace | None) -> tuple[IntArray, IntArray]:
        """Draw `n` input and output lengths, tokens."""
        inputs, outputs = np.array(self.pairs)[drawn(rng, self.weights or np.ones(len(self.pairs)), n)].T
        return inputs, outputs


class TraceJoint(Spec):
    """The lengths of a row of the workload's trace, all rows alike, drawn with replacement."""

    kind: Literal["trace"]

    def sample(self, rng: np.random.Generator, n: int, trace: Trace | None) -> tuple[IntArray, IntArray]:
        """Draw `n` input and output lengths, tokens."""
        if trace is None:
            raise ValueError("lengths of a trace need one")
        rows = rng.integers(len(trace.input_tokens), size=n)
        return trace.input_tokens[rows], trace.output_tokens[rows]


class LengthsSpec(Spec):
    """How long requests are: input and output drawn independently, or jointly."""

    input: LengthSpec | None = Field(None, description="law of the prompt length, tokens")
    output: LengthSpec | None = Field(None, description="law of the generated length, tokens")
    joint: Annotated[PairsJoint | TraceJoint, Field(discriminator="kind")] | None = Field(
        None, description="both together, in place of input and output"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.joint is not None and (self.input is not None or self.output is not None):
            raise ValueError("joint goes without input and output")
        if self.joint is None and self.output is None:
            raise ValueError("needs output, or joint in place of input and output")
        return self

    @property
    def from_trace(self) -> bool:
        """Whether they are drawn from the workload's trace."""
        return isinstance(self.joint, TraceJoint)

    def sample(
        self, streams: Streams, n: int, trace: Trace | None, prompts: IntArray | None
    ) -> tuple[IntArray, IntArray]:
        """Draw input and output lengths, tokens.

        Args:
            streams: of the workload.
            n: number of requests.
            trace: of the workload.
            prompts: (n,) numbers of their prompts, where requests with the same prompt have one input length.
        """
        if self.joint is not None:
            return self.joint.sample(streams.rng("joint lengths"), n, trace)
        if self.input is None or self.output is None:
            raise ValueError("lengths of requests without a law of both")
        number = n if prompts is None else int(prompts.max()) + 1
        inputs = self.input.sample(streams.rng("input lengths"), number)
        return inputs if prompts is None else inputs[prompts], self.output.sample(streams.rng("output lengths"), n)

    def describe(self) -> str:
        """In a few words."""
        if self.joint is not None:
            return f"joint lengths of {self.joint.kind}"
        given = ((self.input, "input"), (self.output, "output"))
        return ", ".join(f"{law.kind} {name}" for law, name in given if law is not None)
