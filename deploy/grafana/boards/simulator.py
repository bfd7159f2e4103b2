"""How fast runs go, and whether their processes are well."""

from __future__ import annotations

from panels import Board, Panel, Row
from promql import clock, growth, share, total

_WALL = growth("pimserve_wall_time_seconds_total")
_SPANS = growth("pimserve_sim_events_total")

_SPEED = Row(
    "Speed",
    (
        Panel(
            "Simulated seconds per second",
            "short",
            "Of the clock that is scraped: the pace of a run, and 1 of one that was backfilled.",
            ((clock(), "{{run_id}}"),),
        ),
        Panel(
            "Steps per wall-clock second",
            "short",
            "What the engine gets done.",
            ((share(growth("pimserve_steps_total"), _WALL), "{{run_id}}"),),
        ),
        Panel(
            "Steps in a span",
            "short",
            "Like steps that the engine executes in one go, mean; few mean that every request is a span of its own.",
            ((share(growth("pimserve_steps_total"), _SPANS), "{{run_id}}"),),
        ),
        Panel(
            "Windows per wall-clock second",
            "short",
            "Stretches of simulated time between which a run is seen and changed.",
            ((share(growth("pimserve_sim_windows_total"), _WALL), "{{run_id}}"),),
        ),
    ),
)

_HOSTS = Row(
    "Hosts",
    (
        Panel(
            "Hosts replaced",
            "short",
            "Actors of shards and devices that died and were replaced, since the beginning.",
            ((total("pimserve_actor_restarts_total"), "{{run_id}}"),),
            "stat",
            8,
            5,
            steps=((None, "green"), (1, "red")),
        ),
        Panel(
            "Spans audited",
            "short",
            "Stretches of steps that devices evaluated again and found to be as the engine said.",
            ((total("pimserve_audit_checks_total"), "{{run_id}}"),),
            "stat",
            8,
            5,
        ),
        Panel(
            "Scrapes that succeed",
            "percentunit",
            "Of the endpoints that expose runs, over the last minutes.",
            (('avg by (instance) (avg_over_time(up{job="pimserve"}[5m]))', "{{instance}}"),),
            "stat",
            8,
            5,
            most=1,
            steps=((None, "red"), (1, "green")),
        ),
        Panel(
            "Memory", "bytes", "Of each run's process.", ((total("pimserve_sim_memory_bytes"), "{{run_id}}"),), width=24
        ),
    ),
)

SIMULATOR = Board(
    "pimserve-simulator",
    "pimserve: the simulator itself",
    "How fast runs go, and whether their processes are well.",
    (_SPEED, _HOSTS),
)
