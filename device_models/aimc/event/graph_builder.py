"""The task graph of sequences passing through a network: which operation waits for which."""

from __future__ import annotations

from collections.abc import Mapping as Map
from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import NamedTuple

from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.event.choices import ExpertChoices, token_ids
from pimserve.device_models.aimc.event.graph import NO_RESOURCE, Resources, Rules, Sequence, TaskGraph
from pimserve.device_models.aimc.event.linear import ChipOperations, Linears
from pimserve.device_models.aimc.event.operations import Operation, OperationTable
from pimserve.device_models.aimc.event.sums_over_links import add_up
from pimserve.device_models.aimc.mapping import Mapping
from pimserve.device_models.aimc.network import Attention, Block, Ffn, Network
from pimserve.device_models.aimc.operation_costs import attention_flops
from pimserve.device_models.aimc.reduction import Reduction
from pimserve.errors import InputError

Routing = Several[Map[str, Several[Several[int]]]]
"""[step][layer, as text][token]: experts of one token, in the order in which they are computed."""


class Vector(NamedTuple):
    """A token's values between operations: the tasks that make them, and the chip that holds them."""

    tasks: Several[int]
    chip: int


@dataclass(frozen=True, slots=True)
class Step:
    """`tokens` new tokens whose attention spans `span` tokens; `reads_cache` if some of these are in the KV cache."""

    sequence: int
    number: int
    tokens: int
    span: int
    reads_cache: bool
    samples: bool


@dataclass(eq=False)
class GraphBuilder:
    """Builds the graph of some sequences step by step; `graph` is the result.

    The network has attention; what experts on other devices give is there when the gate is through.
    """

    network: Network
    chip: Chip
    mapping: Mapping
    rules: Rules
    routing: Routing | None
    choices: ExpertChoices | None
    seed: int
    communication: bool

    def __post_init__(self) -> None:
        network, chip, rules = self.network, self.chip, self.rules
        self.graph = TaskGraph(OperationTable(), Resources(chip.all_tiles, chip.chips))
        self._operations = ChipOperations(network, chip, self.graph.table)
        self._linears = Linears(network, chip, self.mapping, rules, self._operations, self.communication)
        self._homes = [self._linears.chip_of(block.after[0][0]) for block in network.blocks]
        self._moe_layers = [layer for layer, block in enumerate(network.blocks) if block.experts]

    def sequences(self, sequences: Several[Sequence], *, kv_caching: bool) -> TaskGraph:
        """All steps of all sequences; without a cache each step computes all tokens so far."""
        # A token's rank must be below that of the next sequence.
        width = max(s.context + s.prompt + s.generate for s in sequences)
        for number, sequence in enumerate(sequences):
            fed_by: int | None = None
            self.graph.samplers.append([])
            for i in range(sequence.steps):
                span = sequence.context + sequence.prompt + i
                new = span if not kv_caching else sequence.prompt if i == 0 else 1
                step = Step(number, i, new, span, kv_caching and new < span, sequence.generate > 0)
                fed_by = self._step(step, number * width, fed_by)
        return self.graph

    def _step(self, step: Step, rank: int, fed_by: int | None) -> int | None:
        """One pass through the network; the task that samples a token, if one is sampled."""
        network = self.network
        experts = self._experts(step)
        rows = self._token_rows(step)
        x = [self._embedding(step, token, row, rank + token, fed_by) for token, row in enumerate(rows)]
        last_layer = len(network.blocks) - 1
        for layer, block in enumerate(network.blocks):
            home = self._homes[layer]
            x = [self._at_home(vector, home, rank + token) for token, vector in enumerate(x)]
            inputs: list[int] = []
            for token, vector in enumerate(x):
                normed = self._norm(vector, rank + token) if layer or network.norm_first else vector
                inputs.extend(self._projections(block, normed, home, rank + token))
            attended = Vector([self._attention(step, layer, block.attention, inputs, rank)], home)
            for token, vector in enumerate(x):
                read = layer < last_layer or (step.samples and token == step.tokens - 1)
                if read or not self.rules.skip_unread_prompt:
                    chosen = experts[layer][token] if block.experts else ()
                    x[token] = self._after_attention(block, attended, vector, chosen, rank + token)
        if not step.samples:
            return None
        return self._sample(step, x[-1], rank)

    def _embedding(self, step: Step, token: int, row: int, rank: int, fed_by: int | None) -> Vector:
        """Reading row block `row` of the table for one token of the step; a first step waits for nobody."""
        network, home = self.network, self._homes[0]
        assert network.token_embedding is not None
        sampler_chip = self._homes[-1] if network.head is None else self._linears.chip_of(network.head)
        after = [] if fed_by is None else [fed_by]

        def read(matrix: int, row: int) -> list[int]:
            stamp = self._linears.stamp(matrix, sampler_chip, home, row=row, fed=bool(after))
            return self.graph.stamp(stamp, matrix, rank, after)

        position_table = network.position_embedding
        values = read(network.token_embedding, row)
        if position_table is None:
            return Vector(values, home)
        if self.rules.read_positions:
            position = step.span - step.tokens + token
            if position >= network.matrices[position_table].rows:
                positions = network.matrices[position_table].rows
                raise InputError("sequences", f"must not exceed the model's {positions} positions")
            values += read(position_table, position // self.chip.tier_rows)
        return Vector([self._digital(self._operations.add(network.hidden), home, rank, values)], home)

    def _token_rows(self, step: Step) -> list[int]:
        """Row block of the embedding that holds each token of the step."""
        if not self.rules.random_token_ids:
            return [0] * step.tokens
        ids = token_ids(self.seed, step.sequence, step.number, step.tokens, self.network.vocab)
        return [token // self.chip.tier_rows for token in ids]

    def _projections(self, block: Block, x: Vector, home: int, rank: int) -> list[int]:
        """Stages before attention; what attention waits for. Keys and values go to the KV cache on the side."""
        cached: list[int] = []
        results: list[int] = []
        for stage in block.before:
            results = []
            for matrix in stage:
                made = self._linear(matrix, x, home, rank)
                results += made
                if stage is block.before[0] and matrix != stage[0]:
                    cached += made
            x = Vector(results, home)
        if self.rules.kv_writes:
            size = block.attention.kv_bytes
            cost = self.chip.dram.move(size)
            operation = self.graph.table.number(Operation("kv_write", size, 1, 0, 0.0, 0.0, cost.ps, cost.nj))
            self.graph.add(operation, self.graph.resources.dram + home, rank, cached)
        return results if len(block.before) == 1 else [*results, *cached]

    def _attention(self, step: Step, layer: int, shape: Attention, inputs: list[int], rank: int) -> int:
        new, span, chip = step.tokens, step.span, self.chip
        cost = chip.costs.attention(shape, new, span, cached=step.reads_cache, dram=chip.dram)
        parts = min(chip.attention_units, shape.kv_heads) if chip.attention_split == "heads" else 1
        if self.rules.reference_accounting:
            width = shape.decode_flops // 4
            scores = span if new == 1 and step.reads_cache else span * (span + 1) // 2
            values = 2 * width * span * (1 if step.reads_cache else span)
            flops = 2 * width * scores + 1 + 4 * scores - span + values
        else:
            flops = attention_flops(shape, new, span)
        compute_ps = -(-cost.compute_ps // parts)
        operation = Operation("attention", span, 1, compute_ps, cost.compute_nj, flops, cost.dram_ps, cost.dram_nj)
        resource = self.graph.resources.attention + self._homes[layer]
        return self.graph.add(self.graph.table.number(operation), resource, rank, inputs, layer)

    def _after_attention(self, block: Block, attended: Vector, x: Vector, chosen: Several[int], rank: int) -> Vector:
        """From attention to the block's output; all sums and norms are on the block's home chip."""
        home = attended.chip
        hidden = self._operations.add(self.network.hidden)
        for stage in block.after:
            attended = Vector([t for matrix in stage for t in self._linear(matrix, attended, home, rank)], home)
        middle = Vector([self._digital(hidden, home, rank, [*attended.tasks, *x.tasks])], home)
        normed = self._norm(middle, rank)
        results: Several[int] = ()
        if block.dense is not None:
            results = self._ffn(block.dense, normed, home, rank)
        elif block.router is not None:
            results = self._experts_and_sum(block, normed, chosen, rank)
        return Vector([self._digital(hidden, home, rank, [*results, *middle.tasks])], home)

    def _experts_and_sum(self, block: Block, x: Vector, chosen: Several[int], rank: int) -> list[int]:
        assert block.router is not None
        home, operations = x.chip, self._operations
        routed = self._linear(block.router, x, home, rank)
        dispatched = x
        if self.rules.experts_wait_for_router:
            gate = self._digital(operations.activation(len(block.experts)), home, rank, routed)
            dispatched, routed = Vector([gate], home), []
        size = self.network.hidden if self.rules.combine_at_hidden else block.experts[0][0].width
        results = [self._expert(block.experts[expert], dispatched, home, rank) for expert in chosen]
        if block.shared is not None:
            results.append(self._ffn(block.shared, x, home, rank))
        results += [list(dispatched.tasks)] * (block.results - len(results))
        if len(results) == 1:
            return [*results[0], *routed]
        total = results[0]
        for result in results[1:]:
            # Each sum scales by the router's result.
            total = [self._digital(operations.add(size), home, rank, [*total, *result, *routed])]
        return total

    def _expert(self, expert: Several[Ffn], x: Vector, to: int, rank: int) -> list[int]:
        """Chips that it is cut over add up its result."""
        if len(expert) == 1:
            return self._ffn(expert[0], x, to, rank)
        reduction = Reduction(self.chip, self.network.hidden, len(expert))
        chips = [self._linears.chip_of(ffn.down) for ffn in expert]
        parts = [(chip, self._ffn(ffn, x, chip, rank)) for chip, ffn in zip(chips, expert, strict=True)]
        return add_up(self.graph, self._operations, reduction, parts, rank, to=to, communication=self.communication)

    def _ffn(self, ffn: Ffn, x: Vector, to: int, rank: int) -> list[int]:
        """Activation and product run where the second matrix is."""
        there, operations = self._linears.chip_of(ffn.down), self._operations
        first, *others = [self._linear(matrix, x, there, rank) for matrix in ffn.up]
        inner = self._digital(operations.activation(ffn.width), there, rank, first)
        for other in others:
            inner = self._digital(operations.add(ffn.width), there, rank, [inner, *other])
        return self._linear(ffn.down, Vector([inner], there), to, rank)

    def _sample(self, step: Step, x: Vector, rank: int) -> int:
        """From the last token's vector to a token. The chip of the output matrix samples."""
        network, head = self.network, self.network.head
        x = self._norm(x, rank)
        if head is None:
            self.graph.samplers[step.sequence].append(x.tasks[0])
            return x.tasks[0]
        there = self._linears.chip_of(head)
        blocks, _ = network.matrices[head].grid(self.chip.tier_rows, self.chip.tier_cols)
        shared = not self.rules.logits_by_chunk and self.communication
        stamp = self._linears.stamp(head, x.chip, there, hops_out=not shared or blocks > 1)
        logits = self.graph.stamp(stamp, head, rank, x.tasks)
        if shared:
            logits = [self.graph.add(self._operations.hop(self.chip.tier_cols), NO_RESOURCE, rank, logits)]
        sampled = self._digital(self._operations.sampler, there, rank, logits)
        self.graph.samplers[step.sequence].append(sampled)
        return sampled

    def _experts(self, step: Step) -> Map[int, Several[Several[int]]]:
        """Of each MoE layer, the experts of each token of the step."""
        if self.routing is not None:
            return {layer: self.routing[step.number][str(layer)] for layer in self._moe_layers}
        if self.choices is None:
            return {}
        sequence = step.sequence if self.rules.routing_per_sequence else 0
        drawn = self.choices.draw(sequence, step.number, step.tokens)
        return dict(zip(self._moe_layers, drawn, strict=True))

    def _linear(self, matrix: int, x: Vector, to: int, rank: int) -> list[int]:
        return self.graph.stamp(self._linears.stamp(matrix, x.chip, to), matrix, rank, x.tasks)

    def _norm(self, x: Vector, rank: int) -> Vector:
        return Vector([self._digital(self._operations.norm(self.network.hidden), x.chip, rank, x.tasks)], x.chip)

    def _digital(self, operation: int, chip: int, rank: int, after: Several[int]) -> int:
        return self.graph.add(operation, self.graph.resources.digital + chip, rank, after)

    def _at_home(self, x: Vector, home: int, rank: int) -> Vector:
        """The vector on chip `home`, over a link if need be."""
        if x.chip == home or not self.communication:
            return Vector(x.tasks, home)
        hop = self._operations.hop(self.network.hidden, crossing=True)
        return Vector([self.graph.add(hop, NO_RESOURCE, rank, x.tasks)], home)
