"""Replies on standard output: a table for a person, one JSON document for a program."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from google.protobuf.json_format import MessageToDict

from coldframe import tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message
    from rich.console import RenderableType

Reply = TypeVar("Reply", bound="Message")


def show(reply: Reply, table: Callable[[Reply], RenderableType], as_json: bool) -> None:
    """Print a reply."""
    if as_json:
        print_json(document(reply))
    else:
        tables.show(table(reply))


def show_several(
    found: Sequence[Reply], name: str, table: Callable[[Sequence[Reply]], RenderableType], as_json: bool
) -> None:
    """Print what came in several replies; in JSON as a list of that name."""
    if as_json:
        print_json({name: [document(item) for item in found]})
    else:
        tables.show(table(found))


def document(message: Message) -> dict[str, Any]:
    """Return a message as a dictionary, with fields that hold their default, such as an empty list of hits."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON document: on lines of its own for a person, on one line for a program."""
    every_letter = sys.stdout.encoding.lower().replace("-", "") == "utf8"  # of others JSON has escapes
    typer.echo(json.dumps(content, ensure_ascii=not every_letter, indent=2 if sys.stdout.isatty() else None))
