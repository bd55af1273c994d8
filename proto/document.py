"""Writes docs/api.md from the protos and their comments: a part of `make proto`, or python proto/document.py [FILE].

protoc's descriptors hold every comment (source info); the errors come from coldframe/errors.py.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from coldframe.connection import MAX_MESSAGE_BYTES
from coldframe.errors import ColdframeError, error_classes

if TYPE_CHECKING:
    from collections.abc import Iterator

    Place = tuple[int, ...]

PROTO = Path(__file__).parent
API = PROTO.parent / "docs" / "api.md"
PACKAGE = ".coldframe.v1."

# Numbers of fields in descriptor.proto: comments are filed under the way to what they speak of.
_MESSAGE, _ENUM, _SERVICE, _SYNTAX = 4, 5, 6, 12
_MEMBER = 2

INTRODUCTION = f"""# The API

Package `coldframe.v1`, over gRPC; generated from [proto/coldframe/v1](../proto/coldframe/v1) by `make proto`, so the
comments there are what stands here. In Python, `coldframe.Client` asks all of it, in asyncio `coldframe.AsyncClient`;
the `coldframe` command line most of it.

- A field marked *optional* that is not set has the default that its text names. 0, false and "" are the defaults of the
  others, and mean the same as not set.
- Messages are at most {MAX_MESSAGE_BYTES >> 20} MiB, both ways. gRPC's own limit for what a client receives is 4 MiB:
  raise it (`grpc.max_receive_message_length`), as `coldframe.Client` does.
- The server also speaks `grpc.health.v1` and reflection (v1 and v1alpha).
"""


def document() -> str:
    """Return the whole page."""
    files = _files()
    parts = [INTRODUCTION, *_contents(files), *_errors()]
    for file in files:
        parts += _services(file)
    for file in files:
        parts += _types(file)
    return "\n".join(parts).rstrip() + "\n"


def _files() -> list[FileDescriptorProto]:
    """Our own files, by name, with their comments."""
    names = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors"
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--include_source_info"]
        command += [f"--descriptor_set_out={out}", *names]
        subprocess.run(command, cwd=PROTO, check=True, capture_output=True)  # noqa: S603
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def _comments(file: FileDescriptorProto) -> dict[Place, str]:
    """What is said before each thing, as paragraphs on a line each."""
    return {tuple(place.path): _joined(place.leading_comments) for place in file.source_code_info.location}


def _joined(comment: str) -> str:
    paragraphs = comment.strip().split("\n\n")
    return "\n\n".join(" ".join(line.strip() for line in paragraph.splitlines()) for paragraph in paragraphs)


def _contents(files: list[FileDescriptorProto]) -> Iterator[str]:
    yield "## Calls\n\n| service | call | |\n|---|---|---|"
    for file in files:
        said = _comments(file)
        for number, service in enumerate(file.service):
            for place, method in enumerate(service.method):
                text = said.get((_SERVICE, number, _MEMBER, place), "").partition(". ")[0].rstrip(".")
                yield f"| {service.name} | [{method.name}](#{method.name.lower()}) | {text} |"
    yield ""


def _errors() -> Iterator[str]:
    yield (
        "## Errors\n\n"
        "The status's message is for a person: what was wrong, what is allowed, what to do. `grpc-status-details-bin`\n"
        "holds a `google.rpc.Status` with `ErrorInfo` (its reason is the class below, its domain `coldframe`), with\n"
        "`BadRequest` naming the field for INVALID_ARGUMENT, and with `RetryInfo` for RESOURCE_EXHAUSTED. The same\n"
        "stands in plain trailing metadata, percent-encoded: `coldframe-error`, `coldframe-field`,\n"
        "`coldframe-retry-after-ms`. One item among many that fails is told as [ItemError](#itemerror), and the call\n"
        "succeeds; a message that cannot be read, as one with a text that is not UTF-8, ends its stream.\n\n"
        "What gRPC answers by itself has neither details nor metadata: UNIMPLEMENTED, RESOURCE_EXHAUSTED for too\n"
        "large a message, and CANCELLED, without the caller's doing, for what comes in a burst of more calls at\n"
        "once than are looked at (64 where callers need no key). Such a call is to be made again, which gRPC does\n"
        "by a service config: [operations.md](operations.md#when-more-is-asked-than-it-can-do).\n\n"
        "| status | class | |\n|---|---|---|"
    )
    for name, kind in error_classes().items():
        if kind is not ColdframeError:
            yield f"| {kind.code} | `{name}` | {(kind.__doc__ or '').strip()} |"
    yield ""


def _services(file: FileDescriptorProto) -> Iterator[str]:
    said = _comments(file)
    for number, service in enumerate(file.service):
        yield f"## {service.name}\n\n{said.get((_SYNTAX,), '')}\n"
        yield from _methods(service, number, said)


def _methods(service: ServiceDescriptorProto, number: int, said: dict[Place, str]) -> Iterator[str]:
    for place, method in enumerate(service.method):
        taken = f"{'stream of ' if method.client_streaming else ''}{_named(method.input_type)}"
        answer = f"{'stream of ' if method.server_streaming else ''}{_named(method.output_type)}"
        yield f"### {method.name}\n\n{taken} → {answer}\n\n{said[_SERVICE, number, _MEMBER, place]}\n"


def _types(file: FileDescriptorProto) -> Iterator[str]:
    said = _comments(file)
    heading = "" if file.service else f"\n\n{said.get((_SYNTAX,), '')}"
    yield f"## {Path(file.name).name}{heading}\n"
    for number, enum in enumerate(file.enum_type):
        yield from _enum(enum, (_ENUM, number), said)
    for number, message in enumerate(file.message_type):
        yield from _message(message, (_MESSAGE, number), said)


def _enum(enum: EnumDescriptorProto, place: Place, said: dict[Place, str]) -> Iterator[str]:
    yield _headed(enum.name, said.get(place, ""))
    yield "| value | number | |\n|---|---|---|"
    for number, value in enumerate(enum.value):
        yield f"| `{value.name}` | {value.number} | {_cell(said.get((*place, _MEMBER, number), ''))} |"
    yield ""


def _message(message: DescriptorProto, place: Place, said: dict[Place, str]) -> Iterator[str]:
    yield _headed(message.name, said.get(place, ""))
    if not message.field:
        yield "No fields.\n"
        return
    yield "| field | type | |\n|---|---|---|"
    for number, field in enumerate(message.field):
        yield f"| `{field.name}` | {_kind(message, field)} | {_cell(said.get((*place, _MEMBER, number), ''))} |"
    yield ""


def _headed(name: str, comment: str) -> str:
    return f"### {name}\n" + (f"\n{comment}\n" if comment else "")


def _cell(comment: str) -> str:
    return comment.replace("\n\n", "<br>").replace("|", "\\|")


def _kind(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """What a field holds: its type, and how often it may be there."""
    entry = next((one for one in message.nested_type if field.type_name.endswith(f".{message.name}.{one.name}")), None)
    if entry is not None and entry.options.map_entry:
        key, value = entry.field
        return f"map from {_type(key)} to {_type(value)}"
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {_type(field)}"
    if field.proto3_optional:
        return f"{_type(field)}, *optional*"
    if field.HasField("oneof_index"):
        return f"{_type(field)}, *one of* `{message.oneof_decl[field.oneof_index].name}`"
    return _type(field)


def _type(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return _named(field.type_name)
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _named(name: str) -> str:
    """A message or an enum: a link to ours, the name of Google's."""
    short = name.removeprefix(PACKAGE)
    return f"[{short}](#{short.lower()})" if short != name else f"`{name.removeprefix('.')}`"


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else API
    out.write_text(document(), encoding="utf-8")
