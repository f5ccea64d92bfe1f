"""Fields of a message counted in its bytes: as many as the decoder would make."""

from typing import cast

import pytest
from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Wire
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.server.errors import InvalidRequest
from loragate.server.rpc.field_count import check_fields
from loragate.v1 import inference_pb2 as pb

EMPTY_MESSAGE = b"\x12\x00"  # of ChatRequest.messages


def descriptor_of(kind: type[Wire]) -> Descriptor:
    return cast(Descriptor, kind.DESCRIPTOR)


def is_taken(message: bytes, most: int, kind: type[Wire] = pb.ChatRequest) -> bool:
    try:
        check_fields(message, descriptor_of(kind), most_fields=most)
    except InvalidRequest as refused:
        assert refused.code == "request_too_complex"
        return False
    return True


CHAT = pb.ChatRequest(
    model="support",
    messages=[
        pb.Message(role="user", content="hi"),
        pb.Message(role="assistant", tool_calls=[pb.ToolCall(id="1", name="f", arguments="{}")]),
    ],
    sampling=pb.SamplingParams(
        n=300, temperature=0.5, seed=-1, stop_token_ids=[1, 300, 70_000], logit_bias={7: 1.5}
    ),
    template_kwargs=ParseDict({"a": [1, {"b": None}], "c": "text"}, struct_pb2.Struct()),
)


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (pb.ChatRequest(), 0),
        (pb.ChatRequest(model="support"), 1),
        (pb.ChatRequest(messages=[pb.Message()] * 5), 5),
        (pb.ChatRequest(messages=[pb.Message(role="user", content="hi")]), 3),
        (pb.ChatRequest(sampling=pb.SamplingParams(logit_bias={7: 1.5})), 4),
        (pb.ChatRequest(sampling=pb.SamplingParams(stop_token_ids=[1, 2, 3])), 2),
    ],
)
def test_each_field_counts_once_wherever_it_is(message: pb.ChatRequest, fields: int) -> None:
    data = message.SerializeToString()
    assert is_taken(data, fields)
    assert fields == 0 or not is_taken(data, fields - 1)


def test_fields_deep_inside_count_too() -> None:
    data = CHAT.SerializeToString()
    most = next(most for most in range(100) if is_taken(data, most))
    assert 20 < most < 60


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (pb.ChatRequest, EMPTY_MESSAGE * 2_000_000),
        (pb.CompletionRequest, EMPTY_MESSAGE * 2_000_000),
        (pb.ChatRequest, b"\x12\x82\x82\x7a" + b"\x22\x00" * 1_000_000),  # one message's calls
        (pb.ChatRequest, b"\xf8\x3f\x01" * 1_000_000),  # a field that nobody knows
        (pb.ChatRequest, b"\x1b" * 1_000_000),  # beginnings of groups
        (struct_pb2.Struct, b"\x0a\x04\x0a\x02ab" * 500_000),
        (struct_pb2.ListValue, b"\x0a\x00" * 1_000_000),
    ],
    ids=["messages", "prompts", "calls", "unknown", "groups", "struct", "list"],
)
def test_megabytes_of_nothing_are_refused(kind: type[Wire], data: bytes) -> None:
    assert not is_taken(data, 1000, kind)


def test_token_ids_in_one_piece_are_counted_one_by_one() -> None:
    prompt = pb.Prompt(token_ids=pb.TokenIds(ids=[5, 500, 50_000] * 100))
    data = pb.CompletionRequest(prompts=[prompt]).SerializeToString()
    check_fields(data, descriptor_of(pb.CompletionRequest), most_numbers=300)
    with pytest.raises(InvalidRequest, match="299 token ids"):
        check_fields(data, descriptor_of(pb.CompletionRequest), most_numbers=299)


def test_a_large_text_is_one_field() -> None:
    data = pb.CompletionRequest(prompts=[pb.Prompt(text="a" * 4_000_000)]).SerializeToString()
    assert is_taken(data, 2, pb.CompletionRequest)


@settings(deadline=None)
@given(data=st.binary(max_size=60))
def test_bytes_that_are_no_message_are_left_to_the_decoder(data: bytes) -> None:
    assert is_taken(data, 60)


@settings(deadline=None)
@given(data=st.binary(max_size=60).map(lambda tail: CHAT.SerializeToString() + tail))
def test_what_is_decoded_has_no_more_fields_than_were_counted(data: bytes) -> None:
    try:
        message = pb.ChatRequest.FromString(data)
    except DecodeError:
        return
    made = len(message.messages) + sum(len(each.tool_calls) for each in message.messages)
    assert not is_taken(data, made)
