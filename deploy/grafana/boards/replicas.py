"""Queues, batches, KV caches and steps of replicas."""

from __future__ import annotations

from panels import Board, Panel, Row
from promql import OF_ENGINE, growth, per_second, percentiles, quantile, share

_REPLICA = "{{run_id}} {{role}} {{engine}}"


_BY = ("run_id", "engine", "role")


def _each(metric: str) -> str:
    """A gauge of each replica."""
    return f"sum by (run_id, engine, role) ({metric}{{{OF_ENGINE}}})"


def _each_tier(metric: str) -> str:
    """A gauge of each tier of each replica."""
    return f"sum by (run_id, engine, role, tier) ({metric}{{{OF_ENGINE}}})"


def _each_per_second(metric: str) -> tuple[tuple[str, str], ...]:
    return ((per_second(metric, of=OF_ENGINE, by=_BY), _REPLICA),)


_REQUESTS = Row(
    "Requests",
    (
        Panel("Running", "short", "Requests with KV blocks.", ((_each("pimserve_requests_running"), _REPLICA),)),
        Panel(
            "Waiting",
            "short",
            "Requests that wait to be admitted. Results do not tell for which prefill replica of a pool one waited.",
            ((_each("pimserve_requests_waiting"), _REPLICA),),
        ),
        Panel(
            "Decoding",
            "short",
            "Running requests that are past their prompt: the batch of a step that only decodes.",
            ((_each("pimserve_requests_decoding"), _REPLICA),),
        ),
        Panel(
            "Finished per second", "reqps", "Per simulated second.", _each_per_second("pimserve_engine_requests_total")
        ),
    ),
)

_BLOCK = f"on (run_id, engine, role) {_each('pimserve_kv_cache_block_tokens')}"

_KV_CACHE = Row(
    "KV cache",
    (
        Panel(
            "In use",
            "percentunit",
            "KV blocks in use over those that there are.",
            ((_each("pimserve_kv_cache_usage_ratio"), _REPLICA),),
            most=1,
        ),
        Panel(
            "Tokens",
            "short",
            "That the KV blocks in use have room for, and that all of them have.",
            (
                (f"{_each('pimserve_kv_cache_used_blocks')} * {_BLOCK}", f"in use {_REPLICA}"),
                (f"{_each('pimserve_kv_cache_blocks')} * {_BLOCK}", f"there is {_REPLICA}"),
            ),
        ),
        Panel(
            "Preemptions per second",
            "short",
            "Of requests that have finished, per simulated second, as blocks ran out: computed again, swapped to host "
            "memory, or computed again as the swap space was full, too.",
            (
                (
                    per_second("pimserve_preemptions_total", of=OF_ENGINE, by=(*_BY, "cause")),
                    f"{_REPLICA} {{{{cause}}}}",
                ),
            ),
        ),
        Panel(
            "Context", "short", "Tokens that the next step attends to.", ((_each("pimserve_context_tokens"), _REPLICA),)
        ),
    ),
)

_HITS, _LOOKED_UP = (
    growth(f"pimserve_prefix_cache_{what}_tokens_total", of=OF_ENGINE, by=_BY) for what in ("hit", "queried")
)

_PREFIX_CACHE = Row(
    "Prefix cache",
    (
        Panel(
            "Hit ratio",
            "percentunit",
            "Tokens of requests that were admitted of late which were cached, and not computed. Only of runs while they"
            " go: results do not tell.",
            ((share(_HITS, _LOOKED_UP), _REPLICA),),
            most=1,
        ),
        Panel(
            "Cached blocks",
            "short",
            "KV blocks that can be found by their tokens, whether requests hold them or not.",
            ((_each("pimserve_prefix_cache_blocks"), _REPLICA),),
        ),
        Panel(
            "Cached blocks evicted per second",
            "short",
            "Forgotten because others needed them, per simulated second.",
            _each_per_second("pimserve_prefix_cache_evicted_blocks_total"),
        ),
        Panel(
            "Looked up again after preemptions",
            "short",
            "Tokens per simulated second, and those of them that were cached; in none of the panels beside it.",
            tuple(
                (per_second(f"pimserve_prefix_cache_preempted_{what}_tokens_total", of=OF_ENGINE, by=_BY), legend)
                for what, legend in (("queried", f"{_REPLICA} looked up"), ("hit", f"{_REPLICA} cached"))
            ),
        ),
    ),
)

_BY_TIER = (*_BY, "tier")
_TIER = f"{_REPLICA} {{{{tier}}}}"
_TIER_HITS, _TIER_QUERIES = (
    growth(f"pimserve_kv_tier_{what}_tokens_total", of=OF_ENGINE, by=_BY_TIER) for what in ("hit", "queried")
)
_LOAD_WAIT, _LOAD_WAITS = (
    growth(f"pimserve_kv_load_{what}_total", of=OF_ENGINE, by=_BY) for what in ("wait_seconds", "waits")
)


def _tier_per_second(metric: str) -> str:
    return per_second(metric, of=OF_ENGINE, by=_BY_TIER)


_KV_TIERS = Row(
    "Tiers of KV cache",
    (
        Panel(
            "Hit ratio of tiers",
            "percentunit",
            "Of the tokens of late that neither devices nor tiers above had, those that were read from the tier. Only "
            "of runs while they go: results do not tell.",
            ((share(_TIER_HITS, _TIER_QUERIES), _TIER),),
            most=1,
        ),
        Panel(
            "Moved per second",
            "Bps",
            "Read from tiers and written to them, per simulated second.",
            (
                (_tier_per_second("pimserve_kv_tier_read_bytes_total"), f"read {_TIER}"),
                (_tier_per_second("pimserve_kv_tier_written_bytes_total"), f"written {_TIER}"),
            ),
        ),
        Panel(
            "Links of tiers busy",
            "percentunit",
            "Share of simulated time in which the link worked.",
            ((_tier_per_second("pimserve_kv_tier_link_busy_seconds_total"), _TIER),),
            most=1,
        ),
        Panel(
            "Tiers in use",
            "percentunit",
            "Blocks that tiers hold over those that they have room for.",
            ((_each_tier("pimserve_kv_tier_usage_ratio"), _TIER),),
            most=1,
        ),
        Panel(
            "Blocks in tiers",
            "short",
            "Blocks that tiers hold.",
            ((_each_tier("pimserve_kv_tier_blocks"), _TIER),),
        ),
        Panel(
            "Blocks in tiers evicted per second",
            "short",
            "Forgotten because others needed them, or failed with their replica, per simulated second.",
            ((_tier_per_second("pimserve_kv_tier_evicted_blocks_total"), _TIER),),
        ),
        Panel(
            "Wait for blocks from tiers",
            "s",
            "Mean of the requests of late that had to wait for blocks on their way.",
            ((share(_LOAD_WAIT, _LOAD_WAITS), _REPLICA),),
        ),
    ),
)

_DRAFTS, _DRAFTED, _ACCEPTED = (
    growth(f"pimserve_spec_decode_{what}_total", of=OF_ENGINE, by=_BY)
    for what in ("drafts", "draft_tokens", "accepted_tokens")
)

_SPEC_DECODE = Row(
    "Speculative decoding",
    (
        Panel(
            "Acceptance length",
            "short",
            "Tokens that a step gave a decoding request of late, its own one with them. Only of runs while they go: "
            "results do not tell.",
            ((f"1 + {share(_ACCEPTED, _DRAFTS)}", _REPLICA),),
        ),
        Panel(
            "Acceptance rate",
            "percentunit",
            "Draft tokens of late that became part of outputs.",
            ((share(_ACCEPTED, _DRAFTED), _REPLICA),),
            most=1,
        ),
    ),
)

_DECISIONS = "pimserve_router_decisions_total"

_ROUTER = Row(
    "Router",
    (
        Panel(
            "Requests routed by reason",
            "short",
            "Sent by the router, by why it chose that replica, per simulated second. Only of runs with several replicas"
            " while they go: results tell totals alone.",
            ((per_second(_DECISIONS, of=OF_ENGINE, by=("run_id", "reason")), "{{run_id}} {{reason}}"),),
        ),
        Panel(
            "Requests routed to each replica",
            "short",
            "Sent there by the router, per simulated second.",
            ((per_second(_DECISIONS, of=OF_ENGINE, by=_BY), _REPLICA),),
        ),
    ),
)

_STEPS = Row(
    "Steps",
    (
        Panel("Steps per second", "short", "Per simulated second.", _each_per_second("pimserve_steps_total")),
        Panel(
            "Duration of a step",
            "s",
            "Of the runs chosen; replicas together.",
            percentiles("pimserve_step_duration_seconds"),
        ),
        Panel(
            "Tokens in a step",
            "short",
            "Of prompts and outputs; replicas together.",
            percentiles("pimserve_step_tokens"),
        ),
        Panel(
            "Prompt and output lengths",
            "short",
            "Medians of the requests that finished.",
            (
                (quantile(50, "pimserve_request_prompt_tokens"), "prompt {{run_id}}"),
                (quantile(50, "pimserve_request_generation_tokens"), "output {{run_id}}"),
            ),
        ),
        Panel(
            "Replicas that take part",
            "short",
            "Those that have not failed.",
            ((f"sum by (run_id) (pimserve_engine_up{{{OF_ENGINE}}})", "{{run_id}}"),),
        ),
    ),
)

REPLICAS = Board(
    "pimserve-replicas",
    "pimserve: replicas and scheduler",
    "Queues, batches, KV caches and steps of each replica.",
    (_REQUESTS, _KV_CACHE, _ROUTER, _PREFIX_CACHE, _KV_TIERS, _SPEC_DECODE, _STEPS),
    with_engines=True,
)
