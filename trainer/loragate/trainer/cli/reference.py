"""`loragate reference`: adds to an adapter what a server checks it by."""

from pathlib import Path
from typing import Annotated

import typer

from loragate.trainer.cli.options import Json, examples, print_json


def add_to(app: typer.Typer) -> None:
    app.command(
        "reference",
        epilog=examples(
            "loragate reference ./support --chats ./support/data.jsonl",
            "loragate reference ./support --chats test.jsonl --model ./my-base-model",
        ),
    )(reference)


def reference(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The adapter, as PEFT saved it.")],
    chats: Annotated[
        Path,
        typer.Option(
            "--chats",
            metavar="FILE",
            help='Chats like those of the training, one {"messages": [...]} a line. The first four '
            "are used.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="The base model of the training; it has to be prepared. By default the one that "
            "'loragate model prepare' prepares.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Add to an adapter's manifest what the adapter says where it was trained.

    Before the version serves, the server compares log-probabilities with these, and refuses it
    where its scale is read wrongly, its weights were changed or its base model is another. Do this
    with the folder as it was trained, then publish it.
    """
    from loragate.adapters.base_models.preparation import DEFAULT_MODEL, find
    from loragate.adapters.format.files import MANIFEST, inspect
    from loragate.adapters.home import Home
    from loragate.adapters.rendering.renderer import Renderer
    from loragate.adapters.settings import read_settings
    from loragate.trainer.data.example import read_examples
    from loragate.trainer.publishing.reference import compute_reference, write_reference
    from loragate.trainer.training.encoding import supervised

    # As a server here renders what the version is asked.
    shared = read_settings()
    contract = inspect(folder).manifest.contract
    template = contract.chat_template or shared.read_template()
    base = find(model or DEFAULT_MODEL, Home.from_environment().models)
    renderer = Renderer.load(
        base.path,
        template,
        shared.special_tokens_in_text,
        variables=contract.chat_template_kwargs,
    )
    prompts = (supervised(renderer, chat)[-1].input_ids for chat in read_examples(chats))
    computed = compute_reference(base.path, folder, prompts)
    write_reference(folder, computed)
    tokens = sum(len(prompt.token_ids) for prompt in computed.prompts)
    if as_json:
        print_json(
            {
                "manifest": str(folder / MANIFEST),
                "prompts": len(computed.prompts),
                "tokens": tokens,
                "effect_nats": computed.effect,
                "tolerance_nats": computed.allowed,
            }
        )
    else:
        typer.echo(
            f"Wrote {folder / MANIFEST}: {len(computed.prompts)} prompts of {tokens} tokens "
            f"together. The adapter moves log-probabilities by {computed.effect:.2f} nats on "
            f"average; served, they may differ by {computed.allowed:.2f}."
        )
