from collections.abc import Mapping, Sequence

from pimserve.arrays import IntArray
from pimserve.device_models.serial import WayCosts
from pimserve.device_models.step import StepTuple

SOURCES: int

class Span:
    @property
    def steps(self) -> int: ...
    @property
    def busiest_tokens(self) -> int: ...
    def duration_fs(self, steps: int, /) -> int: ...
    def first_reaching(self, limit_fs: int, most: int, duration_fs: int, /) -> tuple[int, int]: ...

class SerialSteps:
    def __new__(
        cls,
        ways: tuple[WayCosts, ...],
        data_parallel: int,
        verify_tokens: int,
        chunks: Mapping[tuple[int, int], tuple[int, int, int]],
        tokens: Mapping[int, int],
        outputs: Mapping[int, int],
        requests: Mapping[tuple[int, int], int] | None,
        decodes: Mapping[int, int],
    ) -> SerialSteps: ...
    def shape(
        self, decodes: int, context: int, chunks: Sequence[tuple[int, int]], outputs: int, /
    ) -> StepTuple[int] | None: ...
    def prompt_step(
        self, decodes: int, context: int, chunks: Sequence[tuple[int, int]], outputs: int, /
    ) -> tuple[StepTuple[int], int] | None: ...
    def decode_span(self, decodes: int, context: int, most: int, experts: Sequence[int], at: int, /) -> Span | None: ...

class MixedSteps:
    def __new__(
        cls,
        rounds: tuple[tuple[int, int, bool], ...],
        closing_layers: int,
        layers: int,
        cuts: tuple[tuple[int, int], ...],
        data_parallel: int,
        verify_tokens: int,
        ways: tuple[WayCosts, ...],
        rows: tuple[tuple[int, bool, Mapping[int, list[int]]], ...],
        once: tuple[tuple[int, bool, Mapping[int, int]], ...],
        pools: Mapping[int, IntArray],
        pool_size: int,
        thousandths: int,
        fine_tokens: int,
        octave_bits: int,
    ) -> MixedSteps: ...
    def step_fs(self, shape: StepTuple[int], outcome: int, /) -> int | None: ...
    def ends_fs(self, requests: int, context: int, outcome: int, most: int, once_fs: int, /) -> list[int] | None: ...
