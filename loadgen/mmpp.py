"""Markov-modulated Poisson process: one whose rate jumps between states (Fischer and Meier-Hellstern 1993).

With a state of rate 0 it is an on/off process; of two states, one of which has rate 0, gaps are hyperexponential.
"""

from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from pimserve.arrays import FloatArray
from pimserve.loadgen.moving_rates import Clock, Rate
from pimserve.loadgen.spec import MAX_TIME_S, Spec
from pimserve.quantity import PositiveSeconds

_BLOCK = 1 << 12  # stays that are drawn at once
_FEWEST = 0.01


class MmppSpec(Spec):
    """States with rates of their own. A stay in one is exponential; the next is any other one, all equally likely."""

    rates_per_s: Annotated[tuple[Rate, ...], Field(min_length=2, max_length=100)] = Field(
        description="arrival rate in each state, requests per second; 0 is a pause"
    )
    mean_dwell_s: tuple[PositiveSeconds, ...] = Field(description="mean stay in each state, s")

    @model_validator(mode="after")
    def _states_fit(self) -> Self:
        if len(self.mean_dwell_s) != len(self.rates_per_s):
            raise ValueError(f"mean_dwell_s needs {len(self.rates_per_s)} values, one for each of rates_per_s")
        per_stay = self.rate_per_s * sum(self.mean_dwell_s) / len(self.mean_dwell_s)
        if per_stay < _FEWEST:
            raise ValueError(
                f"{per_stay:.2g} requests arrive in a stay, in the mean; at least {_FEWEST:g} must: a rate that jumps "
                "faster is its mean"
            )
        return self

    @property
    def rate_per_s(self) -> float:
        """Mean rate: that of the states, by the time spent there."""
        requests = sum(rate * dwell for rate, dwell in zip(self.rates_per_s, self.mean_dwell_s, strict=True))
        return requests / sum(self.mean_dwell_s)

    def clock(self, rng: np.random.Generator) -> Clock:
        """From operational time, which must ascend from call to call, to seconds, over stays that `rng` draws.

        The first state is one met at a moment in time, so that the process is stationary.
        """
        rates, dwells = np.array(self.rates_per_s), np.array(self.mean_dwell_s)
        number = len(rates)
        state = int(np.searchsorted(np.cumsum(dwells), rng.random() * dwells.sum(), side="right"))
        # Of stays that are not over: their rates; begins in s and in operational time, and the end of the last.
        rate, begin_s, begin = np.empty(0), np.zeros(1), np.zeros(1)

        def clock(operational: FloatArray) -> FloatArray:
            nonlocal state, rate, begin_s, begin
            stays = [(rate, begin_s, begin)]
            while stays[-1][2][-1] <= operational[-1] and stays[-1][1][-1] <= MAX_TIME_S:
                states = (state + np.cumsum(np.append(0, rng.integers(1, number, _BLOCK)))) % number
                state, its_rates = int(states[-1]), rates[states[:-1]]
                lengths_s = rng.standard_exponential(_BLOCK) * dwells[states[:-1]]
                ends_s, ends = np.cumsum(lengths_s), np.cumsum(lengths_s * its_rates)
                stays.append((its_rates, stays[-1][1][-1] + ends_s, stays[-1][2][-1] + ends))
            rate, begin_s, begin = map(np.concatenate, zip(*stays, strict=True))
            i = np.searchsorted(begin, operational, side="right") - 1
            # Beyond all stays, that is beyond the clock's end, nothing more is told apart.
            seconds: FloatArray = begin_s[i] + (operational - begin[i]) / np.append(rate, np.inf)[i]
            rate, begin_s, begin = rate[i[-1] :], begin_s[i[-1] :], begin[i[-1] :]
            return seconds

        return clock
