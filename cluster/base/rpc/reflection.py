"""Server reflection, under both names that clients know: `grpc.reflection.v1`, and `v1alpha`, which it was before.

Both have the same messages. The installed grpcio-reflection knows the older one only, so the newer is made of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2  # type: ignore[import-untyped]

_OLD, _NEW = "grpc.reflection.v1alpha", "grpc.reflection.v1"
_FILE = "grpc/reflection/v1/reflection.proto"
SERVICE_NAMES = (f"{_NEW}.ServerReflection", f"{_OLD}.ServerReflection")


def enable_reflection(services: Sequence[str], server: grpc.Server) -> None:
    """Let a server tell of these services, and of reflection itself."""
    _describe()
    names = (*services, *SERVICE_NAMES)
    reflection.enable_server_reflection(names, server)
    method = grpc.stream_stream_rpc_method_handler(
        reflection.ReflectionServicer(names).ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler(SERVICE_NAMES[0], {"ServerReflectionInfo": method})
    server.add_generic_rpc_handlers((handler,))


def _describe() -> None:
    """Have the newer service among the descriptors, so that it can be told of like any other."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(SERVICE_NAMES[0])
    except KeyError:
        old = FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(old)
        new = text_format.Parse(text_format.MessageToString(old).replace(_OLD, _NEW), FileDescriptorProto())
        new.name = _FILE
        pool.Add(new)
