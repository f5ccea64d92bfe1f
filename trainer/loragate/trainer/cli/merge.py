"""`loragate merge`: merges a version into its base model, and has it served."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loragate.trainer.cli.options import Json, examples, print_json
from loragate.trainer.settings import MergeDtype, ModelSettings

if TYPE_CHECKING:
    from loragate.adapters.names import AdapterName, AdapterVersion
    from loragate.adapters.registry.registry import Registry
    from loragate.trainer.data.example import Example

BASE = ModelSettings().base
_TO_BE_SERVED = (
    "is to be served merged, as soon as a server has started an engine for it; see "
    "`loragate adapter show`"
)


def add_to(app: typer.Typer) -> None:
    app.command(
        "merge",
        epilog=examples(
            "loragate merge acme/support@v3",
            "loragate merge acme/support@v3 --serve",
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
    ] = BASE,
    dtype: Annotated[
        MergeDtype | None,
        typer.Option(
            help="What the sum is rounded to, once; bfloat16, or what there is with --serve."
        ),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="The largest file of weights.")
    ] = "4GB",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A folder of splits, to prove the merge on its test rows."
        ),
    ] = None,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Let the server serve it, too; merge only if need be."),
    ] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="Only this: let the server serve it no longer.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Merge a version into its base model, and prove that the result says the same.

    The merged model is kept in the registry beside the version, and transformers and vLLM load it
    alone. A merge that differs from the base with the adapter beside it is refused, and nothing is
    kept of it. For a server elsewhere, use `loragate adapter merged`.
    """
    import msgspec

    from loragate.adapters.base_models.preparation import find
    from loragate.adapters.home import Home
    from loragate.adapters.names import AdapterName
    from loragate.trainer.registry import find_version, open_registry

    if serve and stop:
        raise typer.BadParameter("give --serve or --stop, not both.")
    home = Home.from_environment()
    rows = _test_rows(data) if data else ()
    with open_registry(home) as registry:
        found = find_version(registry, version)
        adapter = AdapterName(found.tenant, found.name)
        if stop:
            registry.merged.stop(adapter, found.number)
            _say_served(found, "is served merged no longer", as_json)
            return
        if serve and _is_merged(registry, adapter, found.number, dtype):
            registry.merged.serve(adapter, found.number)
            _say_served(found, _TO_BE_SERVED, as_json)
            return
        base_model = find(base, home.models)
        # Only now that there is something to merge: these imports take a quarter of a minute.
        from loragate.trainer.cli.progress import silence_libraries

        silence_libraries()  # before the others are imported: some print when they are
        from loragate.trainer.publishing.merged_versions import merge_version

        merged = merge_version(
            registry,
            found,
            base_model,
            home,
            dtype=dtype or "bfloat16",
            max_shard_size=max_shard_size,
            rows=rows,
            out=out,
        )
        if serve:
            registry.merged.serve(adapter, found.number)
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
    if serve:
        _say_served(found, _TO_BE_SERVED, as_json)


def _test_rows(data: Path) -> "tuple[Example, ...]":
    from loragate.trainer.data.splits import SplitFolder

    return SplitFolder.read(data).splits["test"]


def _is_merged(
    registry: "Registry", adapter: "AdapterName", number: int, dtype: MergeDtype | None
) -> bool:
    """Whether there is a merged model, of that dtype if one was named."""
    import msgspec

    from loragate.adapters.errors import NotMerged
    from loragate.adapters.format.merged_files import REPORT

    try:
        folder = registry.merges.folder(adapter, number)
    except NotMerged:
        return False
    report = msgspec.json.decode((folder / REPORT).read_bytes(), type=dict[str, object])
    return dtype in (None, report["dtype"])


def _say_served(version: "AdapterVersion", what: str, as_json: bool) -> None:
    if as_json:
        print_json({"version": str(version), "digest": version.digest})
    else:
        typer.echo(f"{version} {what}.")
