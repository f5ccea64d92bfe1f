import json
from dataclasses import replace

import pytest

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.manifest import AdapterManifest, Contract
from loragate.adapters.format.reference import Reference, ScoredPrompt, Tolerance

SCORED: dict[str, object] = {
    "token_ids": [1, 2, 3],
    "adapter": [-1.0, -2.0],
    "base": [-1.5, -2.5],
}
DERIVED = AdapterManifest(rank=8, alpha=16, target_modules=("q_proj", "v_proj"))


def test_manifest_survives_json():
    manifest = AdapterManifest(
        rank=8,
        alpha=16,
        target_modules=("q_proj",),
        base_model_digest="ab" * 32,
        chat_template_hash="cd" * 32,
        tokenizer_hash="ef" * 32,
        metrics={"loss": 0.25, "rows": 100},
        lineage={"run": "r-1", "seed": 7},
        contract=Contract(
            chat_template="{{ messages }}",
            system_prompt="Be brief.",
            sampling_defaults={"temperature": 0.2, "top_k": 40},
            max_tokens_cap=256,
            stop=("END",),
            stop_token_ids=(2, 7),
        ),
        reference=Reference(
            (ScoredPrompt((5, 6, 7), (-0.5, -1.25), (-2.0, -0.0)),),
            dtype="bfloat16",
            tolerance=Tolerance(0.2, 0.1),
        ),
    )

    assert AdapterManifest.from_json(manifest.to_json()) == manifest


def test_what_the_file_leaves_out_comes_from_the_configuration():
    text = json.dumps({"contract": {"system_prompt": "Be brief."}})

    manifest = AdapterManifest.from_json(text, DERIVED)

    assert manifest.rank == 8
    assert manifest.target_modules == ("q_proj", "v_proj")
    assert manifest.contract == Contract(system_prompt="Be brief.")


def test_rank_is_needed_where_no_configuration_gives_it():
    with pytest.raises(InvalidAdapter, match="must say rank"):
        AdapterManifest.from_json("{}")


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ({"ranks": 8}, "ranks"),
        ({"contract": {"system": "hi"}}, "system"),
        ({"contract": {"sampling_defaults": {"temprature": 1}}}, "temprature"),
        ({"contract": {"sampling_defaults": {"temperature": 2.5}}}, "temperature"),
        ({"contract": {"sampling_defaults": {"temperature": "hot"}}}, "temperature"),
        ({"contract": {"sampling_defaults": {"top_p": 0}}}, "top_p"),
        ({"contract": {"sampling_defaults": {"top_k": 1.5}}}, "top_k"),
        ({"contract": {"sampling_defaults": {"seed": True}}}, "seed"),
        ({"contract": {"max_tokens_cap": 0}}, "max_tokens_cap"),
        ({"contract": {"stop": [""]}}, "stop"),
        ({"contract": {"stop": "END"}}, "stop"),
        ({"rank": 0}, "rank"),
        ({"metrics": {"loss": "low"}}, "metrics"),
        ({"reference": {"prompts": []}}, "reference.prompts"),
        ({"reference": {"prompts": [SCORED] * 9}}, "reference.prompts"),
        ({"reference": {"prompts": [SCORED], "dtype": "int8"}}, "reference.dtype"),
        ({"reference": {"prompts": [SCORED | {"token_ids": [1]}]}}, "token_ids"),
        ({"reference": {"prompts": [SCORED | {"token_ids": [1] * 257}]}}, "token_ids"),
        ({"reference": {"prompts": [SCORED | {"token_ids": [-1, 2, 3]}]}}, "token_ids"),
        ({"reference": {"prompts": [SCORED | {"adapter": [-1.0]}]}}, "need 2 log-prob"),
        ({"reference": {"prompts": [SCORED | {"base": [-1.0] * 3}]}}, "need 2 log-prob"),
        ({"reference": {"prompts": [SCORED | {"adapter": [0.5, -1.0]}]}}, "adapter"),
        ({"reference": {"prompts": [SCORED | {"adapter": [None, -1.0]}]}}, "adapter"),
        ({"reference": {"prompts": [SCORED | {"adapter": [-1.5, -2.5]}]}}, "are the same"),
        ({"reference": {"prompts": [SCORED | {"adapter": [-1.5, -2.5001]}]}}, "are the same"),
        ({"reference": {"prompts": [SCORED | {"adapter": [-1.7e308] * 2}]}}, "adapter"),
        ({"reference": {"prompts": [SCORED | {"base": [-1.7e308] * 2}]}}, "base"),
        ({"reference": {"prompts": [SCORED | {"token_ids": [1, 2, 2**31]}]}}, "token_ids"),
        ({"reference": {"prompts": [SCORED], "tolerance": {"nats": 1e308}}}, "nats"),
        ({"reference": {"prompts": [SCORED], "tolerance": {"nats": 0}}}, "nats"),
        ({"reference": {"prompts": [SCORED], "tolerance": {"share": 1}}}, "share"),
        ({"reference": {"prompts": [SCORED], "tolerance": {"mean": 1}}}, "mean"),
    ],
)
def test_mistake_is_refused_by_name(written: dict[str, object], named: str):
    with pytest.raises(InvalidAdapter, match=named) as refused:
        AdapterManifest.from_json(json.dumps(written), DERIVED)

    assert refused.value.code == "invalid_manifest"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "-1e999"])
def test_log_probability_that_is_no_number_is_refused(number: str):
    prompt = f'{{"token_ids": [1, 2], "adapter": [{number}], "base": [-1]}}'
    with pytest.raises(InvalidAdapter):
        AdapterManifest.from_json(f'{{"reference": {{"prompts": [{prompt}]}}}}', DERIVED)


@pytest.mark.parametrize(
    "contract",
    [
        Contract(max_tokens_cap=2**63),
        Contract(sampling_defaults={"seed": 10**30}),
        Contract(sampling_defaults={"top_k": 2**63}),
    ],
)
def test_number_that_no_engine_holds_is_refused_in_a_file_and_read_where_it_was_kept(
    contract: Contract,
):
    manifest = replace(DERIVED, contract=contract)
    kept = AdapterManifest.from_json(manifest.to_json())

    assert kept == manifest
    with pytest.raises(InvalidAdapter, match="give a smaller number"):
        kept.check_bounds()


@pytest.mark.parametrize("text", ["", "[]", "{", "null", b"\xff", "[" * 100_000])
def test_anything_but_an_object_is_refused(text: str | bytes):
    with pytest.raises(InvalidAdapter):
        AdapterManifest.from_json(text, DERIVED)


def test_manifest_cannot_be_changed():
    manifest = AdapterManifest.from_json('{"metrics": {"loss": 1}}', DERIVED)

    with pytest.raises(TypeError):
        manifest.metrics["loss"] = 0  # type: ignore[index]  # what is being tested
