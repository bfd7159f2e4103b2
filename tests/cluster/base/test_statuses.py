"""Errors on the wire and back."""

import base64
from urllib.parse import quote

import grpc
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.base.rpc.statuses import RefusedError, RequestError, status_of, violations
from pimserve.errors import InputError, PimserveError


def fields(status):
    found = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(found)
    return [(each.field, each.description) for each in found.field_violations]


def test_an_input_error_names_its_field():
    status = status_of(InputError("workload.num_requests", "must be positive"))
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert status.message == "workload.num_requests: must be positive"
    assert fields(status) == [("workload.num_requests", "must be positive")]


def test_one_of_several_lines_names_the_field_of_each():
    error = InputError("", "cluster.replicas: must be 1: or more\nroutes[2].x: is missing\nno field here")
    assert violations(error) == [
        ("cluster.replicas", "must be 1: or more"),
        ("routes[2].x", "is missing"),
        ("", "no field here"),
    ]


def test_other_errors_are_preconditions_and_refusals_say_what_they_are():
    assert status_of(PimserveError("no")).code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    refused = status_of(RefusedError(grpc.StatusCode.NOT_FOUND, "gone"))
    assert (refused.code, refused.message, list(refused.details)) == (grpc.StatusCode.NOT_FOUND.value[0], "gone", [])


@given(st.lists(st.text(max_size=600), max_size=60))
def test_statuses_fit_into_headers_whatever_they_say(lines):
    status = status_of(InputError("", "\n".join(f"a.b: {line}" for line in lines)))
    assert len(status.message.encode()) <= 400
    details = base64.b64encode(status.SerializeToString())
    assert len(quote(status.message)) + len(details) <= 7600  # of 8192, in which gRPC has some of its own


def test_what_there_is_no_room_for_is_counted():
    told = fields(
        status_of(RequestError([(f"input_tokens[{n}]", "must be 1 to 1,000,000 (got 0)") for n in range(500)]))
    )
    assert 60 < len(told) < 500
    assert told[0] == ("input_tokens[0]", "must be 1 to 1,000,000 (got 0)")
    assert told[-1] == ("", f"and {501 - len(told)} more")
