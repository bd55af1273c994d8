"""Reflection, by which grpcurl, Postman and their like learn what the server takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest as Ask
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionResponse

from server.app import SERVICES
from tests.test_server_process import dial

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["v1", "v1alpha"])
def ask(request: pytest.FixtureRequest, target: str) -> Iterator[Any]:
    with dial(target) as channel:
        call = channel.stream_stream(
            f"/grpc.reflection.{request.param}.ServerReflection/ServerReflectionInfo",
            request_serializer=Ask.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )
        yield lambda *questions: list(call(iter(questions), timeout=60))


def test_all_that_is_listed_is_described(ask: Any) -> None:
    (listed,) = ask(Ask(list_services=""))
    names = [service.name for service in listed.list_services_response.service]
    assert {*SERVICES, "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"} < {*names}
    # Who describes all of it, as `grpcurl HOST:PORT describe` does, ends at the first that is not found.
    for name, answer in zip(names, ask(*(Ask(file_containing_symbol=name) for name in names)), strict=True):
        assert answer.file_descriptor_response.file_descriptor_proto, name


@pytest.mark.parametrize(
    "symbol",
    [
        "coldframe.v1.SearchService.Search",
        "coldframe.v1.Ranking.filter",
        "google.rpc.BadRequest",
        "grpc.reflection.v1.ServerReflection.ServerReflectionInfo",
    ],
)
def test_methods_fields_and_details_of_errors_are_described_by_their_names(ask: Any, symbol: str) -> None:
    (answer,) = ask(Ask(file_containing_symbol=symbol))
    assert answer.file_descriptor_response.file_descriptor_proto


def test_what_is_not_there_is_not_found(ask: Any) -> None:
    questions = [Ask(file_containing_symbol=f"coldframe.v1.SearchService{more}") for more in (".Nothing", ".", "s")]
    for answer in ask(*questions, Ask(file_containing_symbol=""), Ask(file_by_filename="nothing.proto")):
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
