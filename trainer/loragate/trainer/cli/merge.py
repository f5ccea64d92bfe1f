"""`loragate merge`: a version as a model of its own."""

from pathlib import Path
from typing import Annotated

import typer

from loragate.trainer.cli.options import Json, examples, print_json
from loragate.trainer.settings.publish import MergeDtype


def add_to(app: typer.Typer) -> None:
    app.command(
        "merge",
        epilog=examples(
            "loragate merge acme/support@v3",
            "loragate merge acme/support --out ./support-merged --dtype float16",
        ),
    )(merge)


def merge(
    version: Annotated[
        str,
        typer.Argument(
            metavar="VERSION", help="acme/support@v3, an alias of it, or the adapter: its champion."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also leave a copy in a new folder.")
    ] = None,
    base: Annotated[
        str, typer.Option(metavar="MODEL", help="The base model that it was trained on.")
    ] = "smollm2-135m-instruct",
    dtype: Annotated[MergeDtype, typer.Option(help="What the sum is rounded to, once.")] = (
        "bfloat16"
    ),
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="The largest file of weights.")
    ] = "4GB",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A folder of splits, to prove the merge on its test rows."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Merge a version into its base model, and prove that the result says the same.

    The merged model is kept in the registry beside the version, and transformers and vLLM load it
    alone. A merge that differs from the base with the adapter beside it is refused, and nothing is
    kept of it.
    """
    import msgspec

    from loragate.adapters.base_model import find
    from loragate.adapters.home import Home
    from loragate.trainer.cli.progress import hush_libraries
    from loragate.trainer.data.split_folder import SplitFolder
    from loragate.trainer.merged_versions import merge_version
    from loragate.trainer.registry import find_version, open_registry

    hush_libraries()
    home = Home.from_environment()
    rows = SplitFolder.read(data).splits["test"] if data else ()
    with open_registry(home) as registry:
        found = find_version(registry, version)
        merged = merge_version(
            registry,
            found,
            find(base, home.models),
            home,
            dtype=dtype,
            max_shard_size=max_shard_size,
            rows=rows,
            out=out,
        )
    if as_json:
        print_json(
            {
                "version": str(merged.version),
                "digest": merged.artifact.digest,
                "folder": str(merged.folder),
                "out": str(out) if out else None,
                "report": msgspec.to_builtins(merged.report),
            }
        )
        return
    typer.echo(f"Merged {merged.version}: {merged.report.sentence}")
    if merged.report.quantized:
        typer.echo(merged.report.quantized.sentence)
    typer.echo(f"It is in {out or merged.folder}")
