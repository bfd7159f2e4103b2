"""Tiers below the prefix cache in runs: what changes no bit, what waits for what, what is kept, and what is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.kv_groups import KvGroups
from pimserve.errors import InputError
from pimserve.loadgen.objectives import Objectives
from pimserve.scheduler.faults import FaultEvent, FaultSpec
from pimserve.scheduler.kv_tier_spec import KvTierSpec
from pimserve.scheduler.simulation import Deployment, Served
from pimserve.scheduler.summary import digest, summarize
from pimserve.scheduler.usage import Hardware
from tests.examples import examples

from .test_prefix_cache import GROUPS, ROWS, SPEC, check_blocks, kv_size, load, run
from .test_windows import LENGTHS, Kept, Windows, cut_and_continued

BLOCK_BYTES = 4 * 1000  # of 4 tokens
BLOCK_MS = 1  # with a link of 4 MB/s
PS_PER_MS = 10**9


def tier(name: str = "host", blocks: int | None = None, latency_ms: float = 0, **more: Any) -> KvTierSpec:
    """One that reads a block in 1 ms."""
    capacity_gb = None if blocks is None else blocks * BLOCK_BYTES / 1e9
    link = {"gb_per_s": BLOCK_BYTES / BLOCK_MS / 1e6, "latency_us": latency_ms * 1000}
    return KvTierSpec(name=name, capacity_gb=capacity_gb, **(link | more))


TIERS = st.tuples(
    st.builds(
        tier,
        st.just("host"),
        st.integers(0, 40),
        st.sampled_from([0, 0.5, 30]),
        write=st.sampled_from(["through", "back"]),
    ),
    st.builds(tier, st.just("disk"), st.none() | st.integers(0, 80), write=st.sampled_from(["through", "back"])),
)


def figures(served: Served) -> list[Any]:
    """All that tiers tell."""
    if served.tiers is None:
        return [digest(served), served.prefixes]
    kept = [[(list(tier.blocks), tier.free_fs, tier.figures) for tier in level] for level in served.tiers.levels]
    return [digest(served), served.prefixes, served.tiers.waits_ps, kept]


def check_tier(there: dict[str, Any], spec: KvTierSpec, groups: KvGroups) -> tuple[int, int]:
    """Its blocks are those that came and did not go, and have room; returns how long its link has worked, and what all
    transfers take, fs."""
    blocks, moved = there["blocks"], there["figures"]
    assert len(blocks) == len(set(blocks))
    kept_blocks = sum(groups.full if block >= 0 else groups.windowed for block in blocks)
    assert kept_blocks == moved["written_blocks"] - moved["evicted_blocks"]
    assert spec.capacity_gb is None or kept_blocks <= round(spec.capacity_gb * 1e9) // BLOCK_BYTES
    return moved["carried_fs"], (moved["read_blocks"] + moved["written_blocks"]) * BLOCK_MS * 10**12


@examples(40)
@given(ROWS, st.integers(100, 300), TIERS, LENGTHS, st.integers(0, 1000), st.booleans(), GROUPS)
def test_windows_and_interruptions_do_not_matter(
    rows: list[tuple[int, int, int]],
    kv_tokens: int,
    tiers: tuple[KvTierSpec, ...],
    lengths: list[int],
    at: int,
    looks: bool,
    groups: KvGroups,
) -> None:
    """Nor does a router that looks at tokens, and cuts spans at each arrival."""
    more = {"kv_tiers": tiers, "router": "least_tokens" if looks else "round_robin"}
    workload, size = load(rows), kv_size(kv_tokens, groups)
    whole = run(workload, 0, run_settings=size, **more)
    for other in cut_and_continued(lambda how: run(workload, 0, how, size, **more), lengths, at):
        assert figures(other) == figures(whole)


@pytest.mark.medium
@examples(60)
@given(ROWS, st.integers(100, 300), TIERS, LENGTHS, st.integers(1, 3), st.none() | st.integers(0, 400), GROUPS)
def test_blocks_are_conserved(
    rows: list[tuple[int, int, int]],
    kv_tokens: int,
    tiers: tuple[KvTierSpec, ...],
    lengths: list[int],
    replicas: int,
    fails_ms: int | None,
    groups: KvGroups,
) -> None:
    """On the device and in tiers, while they are on their way, and with a replica that loses all."""
    failures = () if fails_ms is None else (FaultEvent(at_s=fails_ms / 1000, replica=0, kind="fail", for_s=0.05),)
    kept = Kept()
    deployment = Deployment(control=Windows(lengths), checkpoints=kept)
    size = kv_size(kv_tokens, groups)
    of_run = {**size, "replicas": replicas, "faults": FaultSpec(events=failures)}
    run(load(rows), 0, deployment, of_run, kv_tiers=tiers)
    blocks_of = groups.pool_blocks(size["kv_capacity_tokens"], SPEC.block_size)
    for text, _ in kept.saved:
        for state in json.loads(text)["shards"][0]["engines"]:
            check_blocks(state, blocks_of, groups)
            for spec, there in zip(tiers, state["prefix_tiers"]["tiers"], strict=True):
                carried_fs, asked_fs = check_tier(there, spec, groups)
                assert carried_fs == asked_fs or (fails_ms is not None and carried_fs < asked_fs)


@examples(40)
@given(ROWS, st.integers(100, 300), st.sampled_from(["through", "back"]))
def test_tiers_without_room_change_no_bit(rows: list[tuple[int, int, int]], kv_tokens: int, write: str) -> None:
    with_tiers = run(load(rows), kv_tokens, kv_tiers=(tier(blocks=0, write=write), tier("disk", blocks=0)))
    without = run(load(rows), kv_tokens)
    assert (digest(with_tiers), with_tiers.prefixes) == (digest(without), without.prefixes)


@examples(20)
@given(ROWS, st.integers(200, 300), st.sampled_from(["through", "back"]))
def test_where_nothing_comes_again_tiers_change_no_bit(
    rows: list[tuple[int, int, int]], kv_tokens: int, write: str
) -> None:
    """No prompt is like another, and with room for two that run at once nobody is preempted."""
    rows = [(at, group, outputs) for group, (at, _, outputs) in enumerate(rows)]
    with_tiers = run(load(rows), kv_tokens, max_num_seqs=2, kv_tiers=(tier(write=write),))
    without = run(load(rows), kv_tokens, max_num_seqs=2)
    assert (digest(with_tiers), with_tiers.prefixes) == (digest(without), without.prefixes)
    assert with_tiers.tiers is not None
    assert write == "back" or with_tiers.tiers.levels[0][0].figures.written_blocks


@examples(40)
@given(ROWS, st.integers(0, 40), st.lists(st.sampled_from(["through", "back"]), min_size=1, max_size=2))
def test_an_endless_tier_that_takes_no_time_is_as_good_as_an_endless_device(
    rows: list[tuple[int, int, int]], spare: int, writes: list[str]
) -> None:
    """Where no request waits for blocks of the KV cache: there is room for as many as run at once."""
    tiers = tuple(KvTierSpec(name=f"tier{n}", write=write) for n, write in enumerate(writes))
    small = run(load(rows), 2 * 100 + spare, kv_tiers=tiers, max_num_seqs=2)
    endless = run(load(rows), 10**5, max_num_seqs=2)
    assert small.prefixes is not None
    assert endless.prefixes is not None
    assert small.prefixes.hit_tokens == endless.prefixes.hit_tokens
    assert [log.computed_tokens for log in small.logs] == [log.computed_tokens for log in endless.logs]
    for name in ("first_token_ps", "finish_ps"):
        assert small.table[name].tolist() == endless.table[name].tolist()


def first_tokens_ms(served: Served) -> list[float]:
    """From arrival on; in a step of 10 ms a whole prompt is computed."""
    return [round(ps / PS_PER_MS, 6) for ps in (served.table["first_token_ps"] - served.table["arrival_ps"]).tolist()]


AGAIN = [(0, 0, 2), (1000, 1, 2), (2000, 2, 2), (3000, 0, 2)]  # the device has room for two of three prompts


def test_a_request_waits_until_its_blocks_are_there() -> None:
    """Ten blocks of 1 ms, and the latency: it is scheduled then, and computes the rest."""
    served = run(load(AGAIN), 26 * 4, kv_tiers=(tier(latency_ms=2.5),))
    assert first_tokens_ms(served) == [10, 10, 10, 22.5]
    assert served.table["first_scheduled_ps"][3] == 3012.5 * PS_PER_MS
    assert served.tiers is not None
    assert served.tiers.waits_ps == (12.5 * PS_PER_MS,)


def test_others_do_not_wait_for_it() -> None:
    """One that comes later, and finds nothing, computes while the first one's blocks are on their way."""
    served = run(load([*AGAIN, (3001, 3, 2)]), 26 * 4, kv_tiers=(tier(latency_ms=90),))
    assert first_tokens_ms(served) == [10, 10, 10, 110, 10]


def test_transfers_queue_one_behind_the_other() -> None:
    """Two groups are wanted at once: the second one's blocks wait for those of the first, and for what was written."""
    rows = [(0, 0, 2), (1000, 1, 2), (2000, 2, 2), (3000, 3, 2), (4000, 0, 1), (4000, 1, 1)]
    served = run(load(rows), 26 * 4, kv_tiers=(tier(),))
    # Steps begin at 4,010 and 4,020 ms; in the first, three blocks of 1 ms are written.
    assert first_tokens_ms(served)[4:] == [20, 30]
    assert served.tiers is not None
    assert served.tiers.waits_ps == (10 * PS_PER_MS, 20 * PS_PER_MS)
    ((host,),) = served.tiers.levels
    assert host.figures.read_blocks == 20
    assert host.figures.written_blocks == 4 * 12 + 2 * 2


def test_who_shares_blocks_that_are_on_their_way_waits_for_them_too() -> None:
    rows = [*AGAIN, (3000, 0, 2)]
    served = run(load(rows), 26 * 4, kv_tiers=(tier(),))
    assert first_tokens_ms(served)[3:] == [20, 20]
    assert served.tiers is not None
    ((host,),) = served.tiers.levels
    assert host.figures.read_blocks == 10


@pytest.mark.parametrize(("write", "written"), [("through", 4 * 12), ("back", 2 * 12)])
def test_blocks_are_written_when_they_are_computed_or_forgotten(write: str, written: int) -> None:
    served = run(load([(at, at, 2) for at in range(0, 4000, 1000)]), 26 * 4, kv_tiers=(tier(write=write),))
    assert served.tiers is not None
    ((host,),) = served.tiers.levels
    assert host.figures.written_blocks == len(host.blocks) == written


def test_a_replica_that_fails_loses_its_tiers() -> None:
    failure = FaultEvent(at_s=2.5, replica=0, kind="fail", for_s=0.2)
    served = run(load(AGAIN), 26 * 4, run_settings={"faults": FaultSpec(events=(failure,))}, kv_tiers=(tier(),))
    assert first_tokens_ms(served)[3] == 10
    assert served.prefixes is not None
    assert served.prefixes.hit_tokens == 0
    assert served.tiers is not None
    ((host,),) = served.tiers.levels
    # All that was written was there long before: the link has worked for each block.
    assert host.figures.carried_fs == host.figures.written_blocks * BLOCK_MS * 10**12 > 0


def test_figures_of_tiers() -> None:
    served = run(load(AGAIN), 26 * 4, kv_tiers=(tier(write="back", blocks=100), tier("disk", write="back")))
    section = summarize(served, Objectives(), Hardware(1)).document()["kv_tiers"]
    host, disk = section["tiers"]
    assert served.tiers is not None
    moved = served.tiers.levels[0][0].figures
    assert host == {
        "name": "host",
        "write": "back",
        "capacity_blocks": 100,
        "kept_blocks": moved.written_blocks,
        "queried_tokens": section["tiers"][1]["queried_tokens"] + 40,
        "hit_tokens": 40,
        "preempted_hit_tokens": 0,
        "hit_ratio": pytest.approx(40 / 200),
        "read_bytes": 10 * BLOCK_BYTES,
        "written_bytes": moved.written_blocks * BLOCK_BYTES,
        "evicted_blocks": 0,
        "link_busy_share": pytest.approx((10 + moved.written_blocks) * BLOCK_MS / 1000 / served.end_s),
    }
    assert (disk["hit_tokens"], disk["written_bytes"], disk["capacity_blocks"]) == (0, 0, None)
    assert section["load_wait_s"]["n"] == 1
    assert "kv_tiers" not in summarize(run(load(AGAIN), 400), Objectives(), Hardware(1)).document()


HOST = "scheduler.kv_tiers=[{name: host}]"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([HOST], "scheduler: kv_tiers need enable_prefix_caching"),
        (["scheduler={enable_prefix_caching: true, kv_tiers: [{name: host}, {name: host}]}"], "differ from each other"),
        (["scheduler={enable_prefix_caching: true, kv_tiers: [{name: device}]}"], "differ from each other"),
        (["scheduler={enable_prefix_caching: true, kv_tiers: [{name: host, write: never}]}"], "through.*back"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(load_scenario(None, ["model=mixtral-8x7b", "cluster.device=duplex", *overrides]))
