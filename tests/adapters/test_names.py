import pickle

import pytest

from loragate.adapters.errors import BaseModelName, InvalidName
from loragate.adapters.names import (
    AdapterName,
    AdapterVersion,
    parse_alias,
    parse_tenant,
    parse_version,
)


def test_adapter_name_is_read_and_written_the_same():
    assert str(AdapterName.parse("acme/support")) == "acme/support"


@pytest.mark.parametrize(
    "text",
    [
        "acme",
        "/support",
        "acme/",
        "acme/a/b",
        "Acme/support",
        "acme/sup_port",
        "acme/-support",
        "acme/../etc",
        "acme/support\n",
        "acme/süpport",
        "acme/" + "a" * 64,
        "acme/support@v3",
    ],
)
def test_anything_else_is_refused(text: str):
    with pytest.raises(InvalidName):
        AdapterName.parse(text)


def test_longest_name_has_63_characters():
    assert AdapterName("acme", "a" * 63).name == "a" * 63


def test_base_models_name_cannot_be_taken():
    with pytest.raises(BaseModelName, match="reserved"):
        AdapterName.parse("acme/base")


def test_base_is_a_fine_tenant():
    assert parse_tenant("base") == "base"


@pytest.mark.parametrize("text", ["v3", "v0", "v03"])
def test_version_is_no_alias(text: str):
    with pytest.raises(InvalidName, match="names a version"):
        parse_alias(text)


@pytest.mark.parametrize("text", ["champion", "v", "v3a", "2024-blue"])
def test_words_are_aliases(text: str):
    assert parse_alias(text) == text


def test_version_number_is_read():
    assert parse_version("v12") == 12


@pytest.mark.parametrize("text", ["12", "v0", "v03", "v", "v1.0", "v٣", "v" + "9" * 5000])
def test_other_spellings_of_a_version_are_refused(text: str):
    with pytest.raises(InvalidName):
        parse_version(text)


def test_version_is_written_with_tenant_and_number():
    version = AdapterVersion("acme", "support", 3, "ab" * 32, 17)

    assert str(version) == "acme/support@v3"
    assert version.version == "v3"


def test_error_pickles_with_its_data():
    error = pickle.loads(pickle.dumps(InvalidName("tenant", "A B", "use letters")))

    assert (error.kind, error.value) == ("tenant", "A B")
    assert str(error) == "'A B' is not a valid tenant name; use letters"
