"""How tokens fall on experts: the law against counting token by token, closed forms, and pools against exact draws."""

from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.catalogue import load_model
from pimserve.device_models.expert_picks import draw_counts, expert_share, mean_share, pick_probabilities
from pimserve.device_models.experts import FEATURES, ExpertTerm, ExpertUnit
from pimserve.device_models.operators import Parallelism, operators_of
from pimserve.device_models.popularity_walk import Drift
from pimserve.device_models.registry import load_device
from pimserve.device_models.routing import POOL_SIZE, ExpertPools, Routing, drawn_outcomes, pool_bucket
from tests.examples import examples

DRAWS = 4000


def uniform_counts(experts: int, top_k: int, tokens: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    law = pick_probabilities(np.ones(experts), top_k)
    return draw_counts(np.random.default_rng(seed), law, tokens, draws)


def token_by_token(experts: int, top_k: int, tokens: int, draws: int = DRAWS) -> np.ndarray:
    """The same counts, by letting every token pick its own experts."""
    rng = np.random.default_rng(1)
    picks = np.argpartition(rng.random((draws, tokens, experts)), top_k - 1, axis=2)[:, :, :top_k]
    return np.stack([np.bincount(row.ravel(), minlength=experts) for row in picks])


@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=10),
    tokens=st.integers(0, 5000),
    seed=st.integers(0, 9),
    data=st.data(),
)
@examples(60)
def test_every_token_picks_k_distinct_experts(
    weights: list[float], tokens: int, seed: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, len(weights)))
    law = pick_probabilities(np.array(weights), top_k)
    counts = draw_counts(np.random.default_rng(seed), law, tokens, 3)
    assert (counts.sum(axis=1) == tokens * top_k).all()
    assert counts.min() >= 0
    assert counts.max() <= tokens


@pytest.mark.parametrize(("experts", "top_k", "tokens"), [(8, 2, 32), (6, 5, 10), (16, 1, 40)])
def test_uniform_law_is_that_of_single_tokens(experts: int, top_k: int, tokens: int) -> None:
    ours, plain = uniform_counts(experts, top_k, tokens), token_by_token(experts, top_k, tokens)
    p = top_k / experts
    pair = tokens * top_k * (top_k - 1) / experts / (experts - 1) - tokens * p * p  # covariance of two experts
    expected = np.full((experts, experts), pair)
    np.fill_diagonal(expected, tokens * p * (1 - p))
    tolerance = 6 * tokens * p * (1 - p) / np.sqrt(DRAWS)
    for counts in (ours, plain):
        assert np.cov(counts.T) == pytest.approx(expected, abs=tolerance)
    for figure in (lambda c: c.max(axis=1), lambda c: (c > 0).sum(axis=1), lambda c: c[:, : experts // 2].sum(axis=1)):
        first, second = figure(ours), figure(plain)
        error = 5 * np.hypot(first.std(), second.std()) / np.sqrt(DRAWS)
        assert first.mean() == pytest.approx(second.mean(), abs=error + 1e-9)


@pytest.mark.parametrize(
    "routing", [Routing(popularity="zipf", zipf_exponent=1.0), Routing("given", 0, ((5, 1, 1, 2, 1),))]
)
def test_popular_experts_follow_the_product_law(routing: Routing) -> None:
    experts, top_k, tokens = 5, 2, 50
    (weights,) = routing.expert_weights(experts, seed=0)
    sets = {chosen: np.prod(weights[list(chosen)]) for chosen in combinations(range(experts), top_k)}
    total = sum(sets.values())
    share = [sum(w for chosen, w in sets.items() if e in chosen) / total for e in range(experts)]
    law = pick_probabilities(weights, top_k)
    counts = draw_counts(np.random.default_rng(0), law, tokens, DRAWS)
    assert counts.mean(axis=0) / tokens == pytest.approx(share, abs=5 * 0.5 / np.sqrt(DRAWS * tokens))
    together = sets[0, 1] / total - share[0] * share[1]
    assert np.cov(counts[:, 0], counts[:, 1])[0, 1] == pytest.approx(tokens * together, abs=1.0)


def test_zipf_weights_fall_with_rank() -> None:
    (dealt,) = Routing(popularity="zipf", zipf_exponent=1.2).expert_weights(16, seed=0)
    (other,) = Routing(popularity="zipf", zipf_exponent=1.2).expert_weights(16, seed=1)
    assert not np.array_equal(dealt, other)  # which expert has which rank depends on the seed
    weights = np.sort(dealt)[::-1]
    assert weights == pytest.approx(np.sort(other)[::-1])
    assert weights.mean() == pytest.approx(1)
    assert weights[0] / weights[3] == pytest.approx(4**1.2)
    assert Routing(popularity="zipf", zipf_exponent=0.0).expert_weights(4, seed=0)[0] == pytest.approx([1, 1, 1, 1])


# Closed forms of arXiv 2409.01141: E[active] = N (1 - (1 - k/N)^B), and B k / E[active] tokens for each.
@pytest.mark.parametrize(
    ("experts", "batch", "active"),
    [(64, 8, 14.36), (64, 16, 25.49), (64, 32, 40.83), (64, 64, 55.61), (64, 128, 62.90), (8, 8, 7.20), (8, 16, 7.92)],
)
def test_active_experts(experts: int, batch: int, active: float) -> None:
    assert experts * (1 - (1 - 2 / experts) ** batch) == pytest.approx(active, abs=0.005)
    drawn = (uniform_counts(experts, 2, batch) > 0).sum(axis=1)
    assert drawn.mean() == pytest.approx(active, abs=5 * max(drawn.std(), 0.1) / np.sqrt(DRAWS))


@pytest.mark.parametrize(("batch", "tokens"), [(8, 1.11), (16, 1.26), (32, 1.57), (64, 2.30), (128, 4.07)])
def test_tokens_of_an_active_expert(batch: int, tokens: float) -> None:
    drawn = uniform_counts(64, 2, batch)
    assert 2 * batch / (drawn > 0).sum(axis=1).mean() == pytest.approx(tokens, rel=0.01)


@pytest.mark.parametrize(("groups", "batch", "most"), [(8, 32, 6.92), (8, 64, 7.97), (16, 32, 3.97), (16, 64, 4.00)])
def test_most_active_experts_of_a_group(groups: int, batch: int, most: float) -> None:
    active = (uniform_counts(64, 2, batch) > 0).reshape(DRAWS, groups, -1).sum(axis=2)
    assert active.max(axis=1).mean() == pytest.approx(most, abs=0.02)


@pytest.mark.parametrize(("batch", "most"), [(32, 19.8), (64, 37.5), (128, 71.6)])
def test_most_tokens_of_a_group(batch: int, most: float) -> None:
    tokens = uniform_counts(8, 2, batch).reshape(DRAWS, 4, 2).sum(axis=2)
    assert tokens.max(axis=1).mean() == pytest.approx(most, rel=0.01)


def experts_of(preset: str, model: str, devices: int, way: str = "ep") -> ExpertTerm:
    split = Parallelism(1, devices, devices, way)  # type: ignore[arg-type]
    term = load_device(preset).compile(operators_of(load_model(model), split), split).experts
    assert term is not None
    return term


def pool(pools: ExpertPools, tokens: int) -> np.ndarray:
    return pools.features(np.full(POOL_SIZE, tokens), np.arange(POOL_SIZE))


@pytest.mark.medium
@pytest.mark.parametrize(
    ("preset", "model", "devices", "tokens"),
    [
        ("h100", "mixtral-8x7b", 4, 32),
        ("duplex", "mixtral-8x7b", 4, 77),  # between two buckets
        ("duplex", "glam-143b", 8, 64),
        ("duplex-bank-pim", "mixtral-8x7b", 4, 2075),
    ],
)
def test_pools_agree_with_exact_draws(preset: str, model: str, devices: int, tokens: int) -> None:
    term = experts_of(preset, model, devices)
    pools = ExpertPools(term, Routing(), 3)
    exact = np.array([pools.exact(tokens, 0, step) for step in range(400)])
    pooled = pool(pools, tokens)
    spread = exact[:, 0].std() / exact[:, 0].mean()
    ours, theirs = pooled.mean(axis=0), exact.mean(axis=0)
    certain = [FEATURES.index(name) for name in ("time_fs", "dram_pj", "compute_pj")]
    assert ours[certain] == pytest.approx(theirs[certain], rel=0.01)
    # What runs where is decided by thresholds, so busy times between two buckets are less exact than their sum.
    assert ours[1:3] == pytest.approx(theirs[1:3], abs=0.03 * theirs[0])
    for percent in (1, 50, 99):
        here, there = (np.percentile(each[:, 0], percent) for each in (pooled, exact))
        assert here == pytest.approx(there, rel=max(0.01, spread))
    assert pooled[:, 0].std() == pytest.approx(exact[:, 0].std(), rel=0.2, abs=0.002 * exact[:, 0].mean())


@given(st.integers(1, 10**7))
def test_buckets_enclose_their_tokens(tokens: int) -> None:
    low, high = pool_bucket(tokens)
    assert low <= tokens <= high
    assert high - low <= tokens / 8
    assert pool_bucket(low) == (low, low)
    assert pool_bucket(high) == (high, high)


@pytest.mark.parametrize("tokens", [1, 33, 1000, 70_001])
def test_one_outcome_is_the_same_by_every_way_of_asking(tokens: int) -> None:
    # 70,001 tokens take seconds, whose femtoseconds times the width of a bucket exceed 64 bit.
    pools = ExpertPools(experts_of("logic-pim", "mixtral-8x7b", 2), Routing(), 0)
    times = [pools.time_fs(tokens, index) for index in range(POOL_SIZE)]
    assert pool(pools, tokens)[:, 0].tolist() == times
    prefix = pools.prefixes_fs[tokens]
    assert [b - a for a, b in pairwise(prefix)] == times + times


def test_pools_depend_on_the_seed_only() -> None:
    term = experts_of("duplex", "glam-143b", 8)
    first, other = (ExpertPools(term, Routing(), seed) for seed in (1, 2))
    pool(first, 500)  # what was asked before must not matter
    drawn_outcomes.cache_clear()
    again = ExpertPools(term, Routing(), 1)
    assert np.array_equal(pool(first, 40), pool(again, 40))
    assert not np.array_equal(pool(again, 40), pool(other, 40))
    assert np.array_equal(first.exact(9, 1, 2), again.exact(9, 1, 2))
    assert not np.array_equal(first.exact(9, 1, 2), first.exact(9, 1, 3))


@pytest.mark.medium
def test_outcomes_are_shared_by_runs_that_are_alike_and_no_others() -> None:
    terms = [experts_of("duplex", "glam-143b", devices) for devices in (8, 4)]
    drift = Drift(10**12, 0.5)
    cases = [
        (term, routing, seed, epoch)
        for term, routing in product(terms, (Routing(), Routing("zipf", 0.5), Routing("zipf", 0.5, drift=drift)))
        for seed, epoch in ((0, 0), (1, 0), *([(0, 3)] if routing.drift else []))
    ]
    shared = [pool(ExpertPools(*case), 40) for case in cases]
    for case, there in zip(cases, shared, strict=True):
        again = pool(ExpertPools(*case), 40)
        drawn_outcomes.cache_clear()
        assert np.array_equal(there, again)
        assert np.array_equal(there, pool(ExpertPools(*case), 40))
    assert drawn_outcomes.cache_info().maxsize < len(cases)  # so that some had been forgotten
    with pytest.raises(ValueError, match="read-only"):
        ExpertPools(*cases[0])._pools[40][0] = 0


def test_outcomes_of_different_token_counts_keep_their_rank() -> None:
    pools = ExpertPools(experts_of("h100", "glam-143b", 8), Routing(), 0)
    by_rank = np.argsort(pools.rank)
    for tokens in (20, 30, 77, 500):
        assert (np.diff(pool(pools, tokens)[by_rank, 0]) >= 0).all()


def test_one_expert_takes_everything() -> None:
    unit = ExpertUnit("u", (((0, 7),),), (1.0, 1.0), 0, 0, 0)
    pools = ExpertPools(ExpertTerm(3, 1, 1, 1, 1, (unit,), "first"), Routing(), 0)
    assert set(pool(pools, 10)[:, 0]) == {3 * 10 * 7}


# --- popularity per layer --------------------------------------------------------------------------------------------


def term_of(layers: int, experts: int, top_k: int, groups: int = 1) -> ExpertTerm:
    """Time: 7 fs for every token of the busiest group."""
    unit = ExpertUnit("u", (((0, 7),),), (1.0, 1.0), 0, 0, 0)
    return ExpertTerm(layers, experts, top_k, groups, 1, (unit,), "first")


@st.composite
def weights_by_layer(draw: st.DrawFn) -> tuple[int, tuple[tuple[float, ...], ...]]:
    """(top_k, rows): at least top_k weights of each row are above 0."""
    layers, experts = draw(st.integers(2, 5)), draw(st.integers(1, 8))
    top_k = draw(st.integers(1, experts))
    rows = []
    for _ in range(layers):
        row = draw(st.lists(st.floats(0.01, 100) | st.just(0.0), min_size=experts, max_size=experts))
        kept = draw(st.permutations(range(experts)))[:top_k]
        rows.append(tuple(weight or (1.0 if e in kept else 0.0) for e, weight in enumerate(row)))
    return top_k, tuple(rows)


@given(weights_by_layer(), st.integers(0, 3000), st.integers(0, 9))
@examples(60)
def test_each_layer_keeps_all_tokens_and_gives_none_to_experts_of_weight_0(
    given: tuple[int, tuple[tuple[float, ...], ...]], tokens: int, seed: int
) -> None:
    top_k, rows = given
    pools = ExpertPools(term_of(len(rows), len(rows[0]), top_k), Routing("given", 0, rows), seed)
    for step in range(3):
        counts = pools.exact_counts(tokens, 0, step)
        assert counts.shape == (len(rows), len(rows[0]))
        assert (counts.sum(axis=1) == tokens * top_k).all()
        assert counts.max() <= tokens
        assert not counts[np.array(rows) == 0].any()


def test_each_layer_follows_its_own_law() -> None:
    rows = ((5.0, 1.0, 1.0, 2.0), (0.0, 1.0, 1.0, 0.0), (1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 9.0, 1.0))
    pools = ExpertPools(term_of(4, 4, 2), Routing("given", 0, rows), 0)
    steps, tokens = 400, 50
    counts = np.mean([pools.exact_counts(tokens, 0, step) for step in range(steps)], axis=0) / tokens
    for found, row in zip(counts, rows, strict=True):
        assert found == pytest.approx(expert_share(row, 2), abs=5 * 0.5 / np.sqrt(steps * tokens))
    assert mean_share(rows, 2) == pytest.approx(np.mean([expert_share(row, 2) for row in rows], axis=0))
    assert expert_share(rows[1], 2) == (0.0, 1.0, 1.0, 0.0)


@pytest.mark.medium
@pytest.mark.parametrize("tokens", [3, 32, 77, 2048])
@pytest.mark.parametrize("layers", [4, 60], ids=["all drawn", "resampled"])
def test_pools_of_many_laws_agree_with_exact_draws(layers: int, tokens: int) -> None:
    # Experts of even layers are alike, one of each odd layer takes every token: the busiest group differs by layer.
    even, odd = (1.0,) * 16, (1e6, *(1.0,) * 7, *(0.0,) * 8)
    rows = tuple(odd if layer % 2 else even for layer in range(layers))
    pools = ExpertPools(term_of(layers, 16, 2, groups=4), Routing("given", 0, rows), 0)
    exact = np.array([pools.exact(tokens, 0, step)[0] for step in range(400)])
    pooled = pool(pools, tokens)[:, 0]
    # Four standard errors: of 32 draws of each layer, and of the exact ones.
    assert pooled.mean() == pytest.approx(exact.mean(), abs=4 * exact.std() * np.sqrt(1 / 32 + 1 / len(exact)) + 1e-9)
    assert pooled.std() == pytest.approx(exact.std(), rel=0.4, abs=0.002 * exact.mean())
