"""Server reflection for clients that know only one of its names: their messages are their own, not ours."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from pimserve.cluster.base.rpc.reflection import SERVICE_NAMES, enable_reflection
from pimserve.v1 import simulation_pb2

OURS = simulation_pb2.DESCRIPTOR.services_by_name["SimulationService"].full_name
TEXT, MESSAGE, BYTES, REPEATED = 9, 11, 12, 3


@pytest.fixture(scope="module")
def channel():
    server = grpc.server(ThreadPoolExecutor(2))
    enable_reflection([OURS], server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    server.stop(None)


def messages(package):
    """Request and response as a client has them from the published reflection.proto: of what is used here."""
    file = descriptor_pb2.FileDescriptorProto(name="theirs.proto", package=package, syntax="proto3")

    def add(name, *fields):
        message = file.message_type.add(name=name)
        for field, number, kind, label, of in fields:
            message.field.add(
                name=field, number=number, type=kind, label=label, type_name=f".{package}.{of}" if of else None
            )

    add("ServerReflectionRequest", ("file_containing_symbol", 4, TEXT, 1, ""), ("list_services", 7, TEXT, 1, ""))
    add("ServiceResponse", ("name", 1, TEXT, 1, ""))
    add("ListServiceResponse", ("service", 1, MESSAGE, REPEATED, "ServiceResponse"))
    add("FileDescriptorResponse", ("file_descriptor_proto", 1, BYTES, REPEATED, ""))
    add(
        "ServerReflectionResponse",
        ("file_descriptor_response", 4, MESSAGE, 1, "FileDescriptorResponse"),
        ("list_services_response", 6, MESSAGE, 1, "ListServiceResponse"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kinds = ("ServerReflectionRequest", "ServerReflectionResponse")
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in kinds]


def pool_of(files):
    """A pool of these files, which must be all that they refer to."""
    pool, missing = descriptor_pool.DescriptorPool(), {file.name: file for file in files}

    def add(name):
        file = missing.pop(name, None)
        if file is not None:
            for needed in file.dependency:
                add(needed)
            pool.Add(file)

    for file in files:
        add(file.name)
    return pool


@pytest.mark.parametrize("service", SERVICE_NAMES)
def test_a_client_that_knows_one_name_finds_services_and_their_files(channel, service):
    request, response = messages(service.rpartition(".")[0])
    ask = channel.stream_stream(
        f"/{service}/ServerReflectionInfo", lambda message: message.SerializeToString(), response.FromString
    )
    [listed] = ask(iter([request(list_services="*")]), timeout=5)
    assert {service.name for service in listed.list_services_response.service} == {OURS, *SERVICE_NAMES}
    for name in (OURS, service):
        [answer] = ask(iter([request(file_containing_symbol=name)]), timeout=5)
        files = answer.file_descriptor_response.file_descriptor_proto
        described = [descriptor_pb2.FileDescriptorProto.FromString(file) for file in files]
        assert name in {f"{file.package}.{service.name}" for file in described for service in file.service}
        assert pool_of(described).FindServiceByName(name).methods
