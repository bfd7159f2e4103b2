"""grpc.md: services and messages, from the .proto files with their comments."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from tables import table

PROTOS = Path(__file__).parents[1] / "protos"
_PACKAGE = ".pimserve.v1."
_HEAD = """# gRPC reference

Generated from `protos/pimserve/v1`, package `pimserve.v1`. A server started with `pimserve serve` has
`SimulationService` and `SchedulerService`, the standard health service (`grpc.health.v1`, which asks for no token) and
server reflection. [The service](service.md) says how they behave; `pimserve.cluster.client` is their client for Python.
The other services are between pimserve's own processes.
"""
_FILES = {
    "simulation": "Simulations",
    "scheduler": "A run while it goes",
    "summary": "The figures of a run",
    "worker": "Internal: a run's process",
    "shard": "Internal: shard actors",
    "device": "Internal: device actors",
    "columns": "Tables",
}
# Where descriptor.proto puts the parts of a file, for the paths of comments.
_MESSAGE, _ENUM, _SERVICE, _SYNTAX = 4, 5, 6, 12
_FIELD, _VALUE, _METHOD, _NESTED = 2, 2, 2, 3

Place = tuple[int, ...]


def page() -> str:
    """The page."""
    files = {Path(file.name).stem: file for file in _descriptors().file if file.package == _PACKAGE.strip(".")}
    if set(files) != set(_FILES):
        raise ValueError(f"_FILES does not list the files of protos/: {sorted(set(files) ^ set(_FILES))}")
    return "\n".join([_HEAD, *(part for name, title in _FILES.items() for part in _file(title, files[name]))])


def _descriptors() -> FileDescriptorSet:
    """All files, with comments."""
    buf = Path(sysconfig.get_path("scripts")) / "buf"
    done = subprocess.run([buf, "build", "-o", "-#format=binpb"], cwd=PROTOS, capture_output=True, check=True)
    return FileDescriptorSet.FromString(done.stdout)


def _file(title: str, file: FileDescriptorProto) -> Iterator[str]:
    comments = _comments(file)
    yield f"## {title}\n"
    yield f"`protos/{file.name}`. {comments.get((_SYNTAX,), '')}".strip() + "\n"
    for number, service in enumerate(file.service):
        yield from _service(service, comments, (_SERVICE, number))
    for number, enum in enumerate(file.enum_type):
        yield from _enum(enum, comments, (_ENUM, number))
    for number, message in enumerate(file.message_type):
        yield from _message(message, comments, (_MESSAGE, number))


def _comments(file: FileDescriptorProto) -> Mapping[Place, str]:
    """By the path of what they stand at: their paragraphs, each on one line, lists as they are."""
    comments = {}
    for location in file.source_code_info.location:
        text = location.leading_comments or location.trailing_comments
        if not text and location.leading_detached_comments:
            text = "\n\n".join(location.leading_detached_comments)
        if text:
            comments[tuple(location.path)] = _paragraphs(text)
    return comments


def _paragraphs(text: str) -> str:
    """Lines joined, but for lists of terms, which are indented and have their meaning two blanks away."""
    blocks: list[str] = []
    for line in text.splitlines():
        if listed := re.match(r" {3,}(\S+) {2,}(.*)", line):
            blocks.append(f"- `{listed[1]}`: {listed[2]}")
        elif not line.strip():
            blocks.append("")
        elif blocks and blocks[-1] and (line.startswith("   ") or not blocks[-1].startswith("- ")):
            blocks[-1] += " " + line.strip()
        else:
            blocks.append(line.strip())
    blocks = [block for block in blocks if block]
    return "".join(
        block + ("\n" if block.startswith("- ") and after.startswith("- ") else "\n\n")
        for block, after in zip(blocks, [*blocks[1:], ""], strict=True)
    ).strip()


def _service(service: ServiceDescriptorProto, comments: Mapping[Place, str], path: Place) -> Iterator[str]:
    yield f"### {service.name}\n"
    if path in comments:
        yield comments[path] + "\n"
    rows = [
        (
            f"`{method.name}`",
            ("stream of " if method.client_streaming else "") + _link(method.input_type),
            ("stream of " if method.server_streaming else "") + _link(method.output_type),
            _cell(comments.get((*path, _METHOD, number), "")),
        )
        for number, method in enumerate(service.method)
    ]
    yield table(("method", "takes", "gives", "what it does"), rows)


def _enum(enum: EnumDescriptorProto, comments: Mapping[Place, str], path: Place) -> Iterator[str]:
    yield f"### {enum.name}\n"
    if path in comments:
        yield comments[path] + "\n"
    rows = [
        (f"`{value.name}`", str(value.number), _cell(comments.get((*path, _VALUE, number), "")))
        for number, value in enumerate(enum.value)
    ]
    yield _table(("value", "number", "meaning"), rows)


def _message(message: DescriptorProto, comments: Mapping[Place, str], path: Place, within: str = "") -> Iterator[str]:
    name = f"{within}{message.name}"
    yield f"### {name}\n"
    if path in comments:
        yield comments[path] + "\n"
    if not message.field:
        yield "No fields.\n"
        return
    maps = {entry.name: entry.field for entry in message.nested_type if entry.options.map_entry}
    rows = [
        (
            f"`{field.name}`",
            str(field.number),
            _type(message, field, maps),
            _cell(comments.get((*path, _FIELD, number), "")),
        )
        for number, field in enumerate(message.field)
    ]
    yield _table(("field", "number", "type", "meaning"), rows)
    for number, inner in enumerate(message.nested_type):
        if not inner.options.map_entry:
            yield from _message(inner, comments, (*path, _NESTED, number), f"{name}.")


def _type(
    message: DescriptorProto, field: FieldDescriptorProto, maps: Mapping[str, Sequence[FieldDescriptorProto]]
) -> str:
    entry = maps.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        return f"map of {_plain(entry[0])} to {_plain(entry[1])}"
    text = _plain(field)
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {text}"
    if field.proto3_optional:
        return f"optional {text}"
    if field.HasField("oneof_index"):
        return f"{text}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return text


def _plain(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return _link(field.type_name)
    return f"`{FieldDescriptorProto.Type.Name(field.type).removeprefix('TYPE_').lower()}`"


def _link(name: str) -> str:
    """A type; those of ours lead to their heading."""
    if not name.startswith(_PACKAGE):
        return f"`{name.lstrip('.')}`"
    short = name.removeprefix(_PACKAGE)
    return f"[`{short}`](#{short.lower().replace('.', '')})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; without its last column if that says nothing."""
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return table(columns, rows)


def _cell(text: str) -> str:
    return " ".join(text.split())
