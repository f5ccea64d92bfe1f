"""The tokenizer of the tests' base model, and the example data, prepared once."""

import json

import pytest

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.rendering.renderer import Renderer
from loragate.trainer.data.preparing import prepare
from loragate.trainer.data.settings import Cleaning, PreparationSettings, Reading
from support.training.planted_tickets import EXAMPLES, Planted, Tickets


@pytest.fixture(scope="session")
def renderer(base: BaseModel) -> Renderer:
    return Renderer.load(base.path)


@pytest.fixture(scope="session")
def tickets(tmp_path_factory: pytest.TempPathFactory, renderer: Renderer) -> Tickets:
    sheet = json.loads((EXAMPLES / "planted.json").read_text("utf-8"))
    settings = PreparationSettings(
        Reading(bad_rows="drop", group_field=sheet["group_field"]),
        Cleaning(language=sheet["language"]),
    )
    out = tmp_path_factory.mktemp("tickets")
    prepared = prepare([EXAMPLES / "tickets.csv"], out, settings, renderer)
    planted = [Planted(**row) for row in sheet["planted"] if row["file"] == "tickets.csv"]
    return Tickets(prepared, planted, sheet["secrets"])
