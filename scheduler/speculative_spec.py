"""Settings of speculative decoding, in vLLM's vocabulary, and what they make expect."""

from __future__ import annotations

from itertools import accumulate, pairwise
from operator import mul
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_MOST_DRAFTS = 32


class SpeculativeSpec(BaseModel):
    """Drafts of the tokens that may follow, which a step verifies together (Leviathan et al., ICML 2023).

    In each step a decoding request has `num_speculative_tokens` drafts. The model computes them with its last token;
    accepted are those up to the first that it would not have sampled, and one more token comes from the model itself.
    How many are accepted is stated here, as a simulator has no text to ask.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["mtp", "draft_model", "ngram"] = Field(
        description="who drafts; mtp: a layer of multi-token prediction, as the model's last one, once for each draft; "
        "draft_model: a model of its own; ngram: a look-up in the text, which takes no time of the device",
    )
    num_speculative_tokens: Annotated[int, Field(ge=1, le=_MOST_DRAFTS)] = Field(
        description="drafts of each decoding request in a step"
    )
    acceptance: Rate | Annotated[tuple[Rate, ...], Field(min_length=1, max_length=_MOST_DRAFTS)] | None = Field(
        None,
        description="probability that a draft is accepted if those before it were: one number for all, or one for "
        "each position; the expected tokens of a step are 1 + a1 + a1 a2 + ...",
    )
    mean_acceptance_length: Annotated[float, Field(ge=1, le=_MOST_DRAFTS + 1, allow_inf_nan=False)] | None = Field(
        None,
        description="in place of acceptance: tokens that a step gives a request in the mean, the model's own one with "
        "them (vLLM logs it by this name); each time the whole number below or above",
    )
    model: str | dict[str, Any] | None = Field(
        None, description="method draft_model: the model, of the catalogue or as a description, on the same devices"
    )
    draft_time_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(
        None,
        description="method draft_model, in place of model: time and energy of one draft of all requests, as a share "
        "of what a step without drafts takes; no memory; not with experts on devices of their own",
    )

    @field_validator("acceptance", mode="wrap")
    @classmethod
    def _are_rates(cls, acceptance: object, check: ValidatorFunctionWrapHandler) -> object:
        try:
            return check(acceptance)
        except ValidationError:  # which tells of each form that was tried
            raise ValueError("must be a number from 0 to 1, or a list of such") from None

    @property
    def verify_tokens(self) -> int:
        """Tokens of a decoding request that a step computes: its last one, and the drafts."""
        return self.num_speculative_tokens + 1

    @property
    def lookahead_tokens(self) -> int:
        """KV slots of a request beyond its tokens: of drafts, and where a model makes them, of the next ones too, as
        vLLM has it (`num_lookahead_tokens`)."""
        return self.num_speculative_tokens * (1 if self.method == "ngram" else 2)

    @property
    def drops_last_hit(self) -> bool:
        """Whether the last block that a prompt finds in a prefix cache is computed again, as in vLLM: a layer of
        multi-token prediction goes on from hidden states, which are not cached."""
        return self.method == "mtp"

    @property
    def law(self) -> tuple[float, ...]:
        """Probability of 0, 1, ... accepted drafts in a step."""
        drafts = self.num_speculative_tokens
        if self.mean_acceptance_length is not None:
            whole = min(drafts - 1, int(self.mean_acceptance_length) - 1)
            more = self.mean_acceptance_length - 1 - whole
            return tuple({whole: 1 - more, whole + 1: more}.get(accepted, 0.0) for accepted in range(drafts + 1))
        assert self.acceptance is not None
        rates = self.acceptance if isinstance(self.acceptance, tuple) else (self.acceptance,) * drafts
        reached = [1.0, *accumulate(rates, mul), 0.0]
        return tuple(here - further for here, further in pairwise(reached))

    @property
    def expected_tokens(self) -> float:
        """Of a request in a step: for one rate a and g drafts, (1 - a^(g + 1)) / (1 - a)."""
        return 1 + sum(accepted * probability for accepted, probability in enumerate(self.law))

    @model_validator(mode="after")
    def _says_what_is_accepted(self) -> Self:
        drafts, length = self.num_speculative_tokens, self.mean_acceptance_length
        if (self.acceptance is None) == (length is None):
            raise ValueError("needs either acceptance or mean_acceptance_length")
        if isinstance(self.acceptance, tuple) and len(self.acceptance) != drafts:
            raise ValueError(f"acceptance must be one number, or {drafts}, one for each of num_speculative_tokens")
        if length is not None and length > drafts + 1:
            raise ValueError(f"mean_acceptance_length must be from 1 to {drafts + 1}, the drafts and one token more")
        return self

    @model_validator(mode="after")
    def _says_who_drafts(self) -> Self:
        given = [key for key in ("model", "draft_time_share") if getattr(self, key) is not None]
        if self.method == "draft_model" and len(given) != 1:
            raise ValueError("method draft_model needs either model or draft_time_share")
        if self.method != "draft_model" and given:
            raise ValueError(f"{given[0]} goes with method: draft_model")
        return self
