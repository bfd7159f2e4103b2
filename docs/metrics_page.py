"""metrics.md: the metric families, from their definitions."""

from __future__ import annotations

from collections.abc import Sequence

from tables import table

from pimserve.cluster.metrics.buckets import SECONDS, SECONDS_FROM, SECONDS_TO, VLLM_BOUNDS
from pimserve.cluster.metrics.families import FAMILIES, MERGED_ABOVE, MOST_STAGES
from pimserve.cluster.metrics.family import CLASS, DEVICE, ENGINE, RUN, STAGE, Family
from pimserve.cluster.metrics.vllm import SOURCES
from pimserve.loadgen.request_classes import MOST_CLASSES

_HEAD = f"""# Metrics

What a run exposes to Prometheus, generated from the program.

```
pimserve run examples/mixtral_duplex.yaml --speed 60x --metrics 127.0.0.1:9464 --metrics-linger 15
pimserve serve --metrics 127.0.0.1:9464         # of all runs that go on, and for two minutes of those that have ended
pimserve metrics backfill results/mixtral-duplex --into DIR     # of a finished run, over its simulated time
```

| path | what is there |
| --- | --- |
| `/metrics` | the families below: OpenMetrics 1.0 for scrapers that take it, else the text format 0.0.4 |
| `/metrics/vllm` | the same runs under [vLLM's names](#names-of-vllm) |
| `/-/healthy` | `healthy`; asks for no token |

The endpoint listens where `--metrics` says. With `--metrics-token-file` scrapers must send `Authorization: Bearer
TOKEN`; with `--metrics-tls-cert` and `--metrics-tls-key` it speaks TLS, and with `--metrics-tls-client-ca` it takes
only scrapers with a certificate. `pimserve serve` takes the certificates of its gRPC endpoint where none are given,
but never its token. Beyond the loopback interface it needs a token or scrapers' certificates, or `--insecure`. [The
command line](cli.md) has all options.

Formats are written by Prometheus' client library. `pimserve run` has a process for it, which asks the run for its
values at each scrape: what a scrape costs, a second core pays, and not the engine. In the service the server does it.

## Two clocks

Counters grow by simulated time, and Prometheus divides by wall time: at 60x, `rate` says 60 times too much. So divide
by the rate of simulated time, which is right at any pace:

```
sum by (run_id) (rate(pimserve_generation_tokens_total[1m]))
  / on (run_id) rate(pimserve_virtual_time_seconds_total[1m])
```

Quantiles of histograms, ratios and gauges need no such care. A run without a pace is over before it is scraped twice:
load its history instead (`pimserve metrics backfill`), in which a second of Prometheus is a simulated second.

## Rules that hold for all

- Every series has `run_id`: the run's id in the service, else the name of its results folder. What tells a run's
  properties is `pimserve_run_info`, with which other series can be joined.
- All series of a run are there from its first scrape, at 0, and none goes before the run does. One scrape is of one
  moment of each run.
- `engine` is a replica's number, `role` is `mixed`, `prefill` or `decode`. With more than {MERGED_ABOVE} replicas,
  histograms are merged: those of a role are one, as engine `all`, which its help says; counters and gauges stay apart.
  `--metrics-per-engine` (of `run`, `serve`, `metrics export` and `metrics backfill`) keeps histograms apart too. An
  engine has some 1,700 series then, for which a scrape takes 10 to 20 ms.
- Requests count when they have left; a request that was handed over counts on the replica that decoded it. Counters
  of tokens, steps, energy and busy time are brought up to date once a second of wall time, the others at the end of
  every window (about 50 ms, a tenth of a second when paced).
- Bytes over links follow from the collectives and the tokens that passed through them: of all-reduces those that a
  ring sends, whichever algorithm the time is of; of dispatch and combine the copies of `cluster.dispatch`, inside nodes
  and between them; in a measured run inside one node, a copy for every pick. A KV cache that
  was handed over counts on the replica that got it, when its request finishes.
- Replicas with attention and experts on devices of their own (`cluster.placement`) have one series of each device
  family, whose `device_model` names both kinds, and units of the experts' devices are called `experts_...`; families
  with a `group` tell both groups apart. What goes over the link between these has the operators `dispatch` and
  `combine`. While a run goes on, time counts for a group when the step in which it passed has been counted.
- With an arrival rate that steps (`workload.arrival.stages`, or steps of a `rate_series`), `stage` is the number of a
  stage, from 0; a request counts for the one in which it arrived. More than {MOST_STAGES} stages have no series.
- With classes of requests (`workload.classes`, {MOST_CLASSES} at most), `slo_class` is the name of one, and limits are
  those of each request's class; `pimserve_class_info` tells its tenant and priority. Requests that were injected into a
  run have no class. Buckets have the limits of all classes among their bounds.
- With limits at percentiles (`slo.ttft_p99_s`), `pimserve_slo_percentile_...` say what they come to so far: pass or
  fail is exact, the percentile within 2^-12 of its value. With a limit of longest gaps (`slo.itl_max_s`), whether
  requests met their limits is known once a second of wall time, as these gaps are.
- What waits at the clients (`pimserve_sessions_active`, `pimserve_sessions_thinking`, `pimserve_users_thinking`,
  `pimserve_client_requests_waiting`) is brought up to date once a second of wall time too.
- At the end of a run, counters are equal to its `summary.json`, with two exceptions. Simulated time of a live run may
  go on to the end of its last window. A run that is loaded afterwards lacks, in its inter-token latencies, the gaps of
  requests that waited to be resumed or handed over.
- Latencies and the SLO are of the measured window, as in the summary and in `GetLatencies`: of requests that arrive
  after `run.warmup_s` and before the cool-down, and of gaps between tokens that end there. All other families are of
  the whole run, so with a warm-up there are more requests than a latency has samples. Without a warm-up and a
  cool-down, all of the run is measured.
- A quantile that is read from a histogram of seconds (`histogram_quantile`) is within 10 % of the sample of nearest
  rank, whatever the samples are, from {SECONDS_FROM * 1e3:g} ms to {SECONDS_TO:g} s: both are in the same bucket, and
  bounds lie at most 9.8 % apart. Below, it is off by {SECONDS_FROM * 1e3:g} ms at most; above, bounds are coarse.
  `sum by (le)` over replicas or runs keeps that; over a `rate` it holds for the samples of that time.
- A run that is continued from a checkpoint goes on from its counters, but for wall time, which begins again.
"""

_ABSENT = """## Not there

- LoRA adapters: not modelled. What prefix caches and their tiers found: not in metrics that are made of a results
  folder.
- Energy that devices draw whether they work or not (`operator="passive"`): where a device's passive power is not known,
  or left out (`costs.passive_power: false`).
- `pimserve_actor_restarts_total` and `pimserve_audit_checks_total` stay 0 in runs of one process.
- Exemplars, `_created` samples and native histograms.
"""
_GROUPS: Sequence[tuple[str, tuple[str, ...]]] = (
    ("Runs", RUN),
    ("Stages", STAGE),
    ("Classes", CLASS),
    ("Engines", ENGINE),
    ("Devices", DEVICE),
)


def page() -> str:
    """The page."""
    return "\n".join([_HEAD, *(_group(title, labels) for title, labels in _GROUPS), _buckets(), _vllm(), _ABSENT])


def _group(title: str, labels: tuple[str, ...]) -> str:
    """Families with these labels, and more of their own."""
    named = ", ".join(f"`{label}`" for label in labels)
    rows = [
        (f"`{family.name}`", family.kind, _codes(family.labels[len(labels) :]), family.help)
        for family in FAMILIES
        if _labels_of_group(family) == labels
    ]
    return f"## {title}\n\nLabels of all: {named}.\n\n" + table(("family", "kind", "more labels", "meaning"), rows)


def _labels_of_group(family: Family) -> tuple[str, ...]:
    """Labels of the group that a family belongs to: the longest with which its own begin."""
    return next(labels for _, labels in reversed(_GROUPS) if family.labels[: len(labels)] == labels)


def _buckets() -> str:
    rows = [
        (f"`{family.name}`", _bounds(family), f"`slo.{family.slo}`" if family.slo else "-")
        for family in FAMILIES
        if family.kind == "histogram"
    ]
    text = f"""## Buckets

Upper bounds; the limit of the run's SLO becomes one more, so that a bucket says who met it. *dense* are {len(SECONDS)}
bounds: 25 per decade from {SECONDS_FROM * 1e3:g} ms to {SECONDS_TO:g} s (0.0001, 0.0001096, 0.0001202, ..., 1000), and
{", ".join(f"{bound:g}" for bound in SECONDS if not SECONDS_FROM <= bound <= SECONDS_TO)} s beyond.

"""
    return text + table(("family", "bounds", "limit"), rows)


def _bounds(family: Family) -> str:
    """Upper bounds; `dense` stands for those that all families of seconds have."""
    dense = set(SECONDS) <= set(family.bounds)
    others = ", ".join(f"{bound:g}" for bound in family.bounds if not dense or bound not in SECONDS)
    return ", ".join(filter(None, ["dense" if dense else "", others]))


def _vllm() -> str:
    text = """## Names of vLLM

Dashboards and endpoint pickers for vLLM work on `/metrics/vllm`. Names, kinds, meanings and buckets are those of vLLM
0.33, so quantiles are as coarse as there; the labels are `model_name` and `engine`, and `run_id` and `role` of our own.
Buckets of prompt and output tokens end at `max_model_len`.

"""
    rows = [
        (f"`{name}`", f"`{source}`", ", ".join(f"{bound:g}" for bound in VLLM_BOUNDS.get(name, ())) or "-")
        for name, source in SOURCES.items()
    ]
    return text + table(("vLLM", "from", "bounds"), rows)


def _codes(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"
