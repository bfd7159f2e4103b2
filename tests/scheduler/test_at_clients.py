"""What waits at clients at any moment, against when each request was sent and answered, one by one."""

import numpy as np
import pytest
from hypothesis import Phase, given
from hypothesis import strategies as st

from pimserve.scheduler.at_clients import AtClients, Senders
from pimserve.scheduler.requests import SERVABLE
from tests.examples import examples

from .dependent import answers, arrivals, dependent, ended

SHARES = st.lists(st.floats(0, 1.2), min_size=1, max_size=5)
FEW = examples(25, phases=[Phase.generate])


def at(run, now_ps):
    frontend_ps = run.served.pools[0].plan.frontend_ps
    return Senders.of(run.served.clients).at(run.table, now_ps, frontend_ps)


def served(case):
    """The run, when each request was sent and answered, ps, and whether it was served at all; None: not all were."""
    run = case.run()
    if not len(run.table) or not ended(run):
        return None
    servable = run.table["reject_reason"] == SERVABLE
    # Answers count in the picosecond after the end, and whoever cannot be served has one as it arrives.
    return run, run.table["arrival_ps"], np.array(answers(run)) - np.where(servable, 1, -1), servable


def moments(shares, over_ps):
    return [round(share * int(over_ps.max())) for share in shares]


@pytest.mark.medium
@FEW
@given(dependent(["cap"]), SHARES)
def test_who_is_due_and_was_not_sent_waits(case, shares):
    if (of := served(case)) is None:
        return
    run, due_ps, over_ps, servable = of
    sent_ps = arrivals(run, case.workload)
    for now_ps in [*moments(shares, over_ps), *due_ps.tolist(), *sent_ps.tolist()]:
        waits = servable & (due_ps < now_ps) & (sent_ps > now_ps + 1)
        assert at(run, now_ps) == AtClients(requests_waiting=int(waits.sum()))


@pytest.mark.medium
@FEW
@given(dependent(["users"]), SHARES)
def test_users_think_from_an_answer_until_they_send_if_they_will(case, shares):
    if (of := served(case)) is None or not case.workload.think_ps.any():
        return
    run, sent_ps, over_ps, _ = of
    users = case.workload.concurrency
    for now_ps in moments(shares, over_ps):
        unanswered = int(((sent_ps < now_ps) & (over_ps > now_ps)).sum())
        to_come = int((sent_ps >= now_ps).sum())
        assert unanswered <= users
        assert at(run, now_ps) == AtClients(users_thinking=min(users - unanswered, to_come))


@pytest.mark.medium
@FEW
@given(dependent(["sessions"]), SHARES)
def test_sessions_are_active_from_their_first_request_to_their_last_answer(case, shares):
    if (of := served(case)) is None:
        return
    run, sent_ps, over_ps, _ = of
    session = run.served.clients.session
    for now_ps in moments(shares, over_ps):
        active = thinking = 0
        for number in np.unique(session):
            sent, over = sent_ps[session == number], over_ps[session == number]
            if sent.min() < now_ps < over.max():
                active += 1
                thinking += not ((sent < now_ps) & (now_ps < over)).any()
        assert at(run, now_ps) == AtClients(sessions_active=active, sessions_thinking=thinking)


@pytest.mark.medium
@FEW
@given(dependent(["active sessions"]), SHARES)
def test_first_turns_wait_while_enough_sessions_are_active(case, shares):
    if (of := served(case)) is None:
        return
    run, due_ps, over_ps, servable = of
    sent_ps, session = arrivals(run, case.workload), run.served.clients.session
    over_ps = np.where(servable, over_ps, sent_ps - 1)
    for now_ps in moments(shares, over_ps):
        active = thinking = waiting = 0
        for number in np.unique(session):
            sent, over = sent_ps[session == number], over_ps[session == number]
            if due_ps[number] < now_ps < sent[0] - 2:
                waiting += 1
            elif sent[0] < now_ps < over.max():
                active += 1
                thinking += not ((sent < now_ps) & (now_ps < over)).any()
            elif abs(now_ps - sent[0]) <= 2 or abs(now_ps - over.max()) <= 2:
                break  # in the few picoseconds in which one ends and another one begins
        else:
            expected = AtClients(sessions_active=active, sessions_thinking=thinking, requests_waiting=waiting)
            assert at(run, now_ps) == expected
