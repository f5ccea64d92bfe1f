"""LangChain's standard tests of a chat model, with ChatOpenAI over loragate."""

import json
import os

import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

_TARGET = json.loads(os.environ["LORAGATE_TARGET"])
PARAMS = {
    "model": _TARGET["model"],
    "base_url": _TARGET["http"] + "/v1",
    "api_key": _TARGET["key"],
    "max_retries": 0,
    "stream_usage": True,
}


class _Chat:
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return PARAMS

    # Text alone is served, whatever ChatOpenAI could send.
    supports_image_inputs = False
    supports_audio_inputs = False
    supports_pdf_inputs = False
    supports_json_mode = True
    has_tool_choice = True


class TestUnit(_Chat, ChatModelUnitTests):
    @pytest.mark.xfail(reason="compares with a snapshot that LangChain's repository holds")
    def test_serdes(self, model, snapshot):
        super().test_serdes(model, snapshot)


class TestChatCompletions(_Chat, ChatModelIntegrationTests):
    @property
    def model_override_value(self):
        return "base"

    supports_model_override = True


class TestResponses(_Chat, ChatModelIntegrationTests):
    @property
    def chat_model_params(self):
        return {k: v for k, v in PARAMS.items() if k != "stream_usage"} | {
            "use_responses_api": True
        }

    @property
    def model_override_value(self):
        return "base"

    supports_model_override = True


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output_by_each_method(method):
    from pydantic import BaseModel

    class City(BaseModel):
        name: str
        inhabitants: int

    model = ChatOpenAI(**PARAMS).with_structured_output(City, method=method)
    assert model.invoke('The City "Rome" has 3 inhabitants') == City(name="Rome", inhabitants=3)
