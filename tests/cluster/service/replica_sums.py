"""What `GetReplicas` says at the end of a run has in common with its summary."""

from collections import Counter


def replicas_are_those_of(summary, told):
    """Preemptions by cause, drafts, and decisions of the router by reason: sums of replicas are those of the run."""
    preempted = summary["requests"]["preemptions_by_cause"]
    causes = [each.preemptions_by_cause for each in told.replicas if each.HasField("preemptions_by_cause")]
    assert {cause: sum(getattr(each, cause) for each in causes) for cause in preempted} == preempted
    assert bool(causes) == bool(summary["requests"]["preemptions"])
    drafts = [each.spec_decode for each in told.replicas if each.HasField("spec_decode")]
    of_run = summary.get("spec_decode")
    assert bool(drafts) == bool(of_run)
    if of_run:
        assert sum(each.drafts_requests for each in drafts) == of_run["drafts"]
        assert sum(each.draft_tokens for each in drafts) == of_run["draft_tokens"]
        assert sum(each.accepted_tokens for each in drafts) == of_run["accepted_tokens"]
    router = summary.get("router")
    assert told.HasField("router") == bool(router)
    if router:
        assert told.router.requests == router["requests"]
        assert dict(told.router.by_reason_requests) == router["by_reason"]
        by_replica = {each.replica: (each.requests, dict(each.by_reason_requests)) for each in told.router.replicas}
        assert by_replica == {each["replica"]: (each["requests"], each["by_reason"]) for each in router["replicas"]}
        reasons = sum((Counter(each.by_reason_requests) for each in told.router.replicas), Counter())
        assert reasons == Counter(router["by_reason"])
