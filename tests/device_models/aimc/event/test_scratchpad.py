"""The peak of the scratchpad against the reference simulator's bookkeeping: a table of addresses, event by event."""

from collections import defaultdict

import pytest
from hypothesis import given

from pimserve.device_models.aimc.event.operations import Operation
from pimserve.device_models.aimc.event.simulate import Outcome
from tests.device_models.aimc.strategies import Run, compat_runs
from tests.examples import examples


class Table:
    """Addresses as the reference simulator keeps them: what lies there, for how many that have not started."""

    def __init__(self, run: Run, outcome: Outcome) -> None:
        self.graph, self.rows, self.hidden = outcome.graph, run.chip.tier_rows, run.network.hidden
        self.users: dict[int, list[int]] = defaultdict(list)
        for src, dst in zip(self.graph.src, self.graph.dst, strict=True):
            self.users[src].append(dst)
        self.left: dict[tuple[int, int], int] = {}
        self.size: dict[tuple[int, int], int] = {}
        self.inputs: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.outputs: dict[int, list[tuple[int, int]]] = {}
        for task in range(len(self.graph.operation)):
            if self.of(task).kind != "hop":
                self.outputs[task] = self.addresses(task)

    def of(self, task: int) -> Operation:
        return self.graph.table.operations[self.graph.operation[task]]

    def address(self, task: int, size: int, users: list[int]) -> tuple[int, int]:
        found = (task, len(self.left))
        self.left[found], self.size[found] = len(users), size
        for user in users:
            self.inputs[user].append(found)
        return found

    def addresses(self, task: int) -> list[tuple[int, int]]:
        """Those that a task writes when it ends and that count."""
        children = [u for user in self.users[task] for u in (self.users[user] if self.is_hop(user) else [user])]
        kind, size = self.of(task).kind, self.of(task).size
        analog = [child for child in children if self.of(child).kind == "mvm"]
        digital = [child for child in children if self.of(child).kind != "mvm"]
        if not children or (kind == "mvm" and self.of(children[0]).kind == "sampler"):
            return []
        if kind == "mvm" or not analog:
            return [
                self.address(task, self.hidden if kind == "attention" else 512 if kind == "sampler" else size, children)
            ]
        if kind == "attention":
            by_token: dict[int, list[int]] = defaultdict(list)
            for child in analog:
                by_token[self.graph.rank[child]].append(child)
            return [
                self.address(task, self.hidden, part)
                for token in by_token.values()
                for part in self.cut(self.by_name(token), self.hidden)
            ]
        if kind == "sampler":
            size = 512
            names = {child: "tier_linear_x" if n == 0 else f"tier_linear_{n}_x" for n, child in enumerate(analog)}
            parts = self.cut(sorted(analog, key=lambda child: names[child].split("_")[2]), size)
        else:
            parts = self.cut(self.by_name(analog), size)
        users = parts[-1] + digital
        return [self.address(task, size, users)] if users else []

    def is_hop(self, task: int) -> bool:
        return self.of(task).kind == "hop"

    def by_name(self, mvms: list[int]) -> list[int]:
        return sorted(mvms, key=lambda mvm: str(self.graph.chunk[mvm]))

    def cut(self, mvms: list[int], size: int) -> list[list[int]]:
        """As many parts as a vector of that size has row blocks. Where they cannot be equal, the original stops."""
        parts = -(-size // self.rows)
        found: list[list[int]] = [[] for _ in range(parts)]
        for place, mvm in enumerate(mvms):
            found[place * parts // len(mvms)].append(mvm)
        return found

    def peak(self, start: list[int], finish: list[int]) -> int:
        begins, ends = defaultdict(list), defaultdict(list)
        for task in self.outputs:
            begins[start[task]].append(task)
            ends[finish[task]].append(task)
        live: set[tuple[int, int]] = set()
        most = 0
        for now in sorted({*begins, *ends}):
            live |= {address for task in ends[now] for address in self.outputs[task]}
            most = max(most, sum(self.size[address] for address in live))
            for address in (address for task in begins[now] for address in self.inputs[task]):
                self.left[address] -= 1
                if not self.left[address]:
                    live.discard(address)
        return most


@pytest.mark.medium
@examples(60)
@given(compat_runs())
def test_the_peak_is_that_of_a_table_of_addresses(run: Run) -> None:
    outcome = run.outcome()
    table = Table(run, outcome)
    assert outcome.peak_memory_bytes == table.peak(outcome.start_ps.tolist(), outcome.finish_ps.tolist())
