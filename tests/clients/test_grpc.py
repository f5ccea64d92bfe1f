"""What grpcurl does: finds the service by reflection, and calls it with no stub."""

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

INFERENCE = "loragate.v1.Inference"


@pytest.fixture
def channel(target):
    with grpc.insecure_channel(target.grpc) as channel:
        yield channel


def method(channel, name):
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    return pool.FindServiceByName(INFERENCE).FindMethodByName(name)


def request(found, body):
    return json_format.ParseDict(body, GetMessageClass(found.input_type)())


def caller(channel, found):
    make = channel.unary_stream if found.server_streaming else channel.unary_unary
    return make(
        f"/{INFERENCE}/{found.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(found.output_type).FromString,
    )


def test_services_are_listed(channel):
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {INFERENCE, "grpc.health.v1.Health"} <= set(services)


@pytest.mark.parametrize("name", ["Chat", "ChatStream"])
def test_a_chat_is_called_by_what_reflection_says(channel, target, name):
    found = method(channel, name)
    body = {"model": target.model, "messages": [{"role": "user", "content": "hello"}]}
    metadata = [("authorization", f"Bearer {target.key}")]
    answer = caller(channel, found)(request(found, body), metadata=metadata, timeout=30)
    messages = list(answer) if found.server_streaming else [answer]
    assert "hello" in "".join(str(message) for message in messages)


def test_a_call_without_a_key_is_unauthenticated(channel, target):
    found = method(channel, "Chat")
    with pytest.raises(grpc.RpcError) as refused:
        caller(channel, found)(request(found, {"model": target.model}), timeout=30)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
