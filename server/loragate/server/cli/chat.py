"""`loragate chat`: a conversation in the terminal, over the server's public API."""

from typing import TYPE_CHECKING, Annotated

import typer

from loragate.adapters.errors import LoragateError
from loragate.server.cli.options import Json, examples
from loragate.server.cli.output import print_json, say

if TYPE_CHECKING:
    from loragate.server.cli.chat_client import Answer, ChatClient

Messages = list[dict[str, str]]


class KeyMissing(LoragateError):
    """No tenant key was given."""


def add_to(app: typer.Typer) -> None:
    app.command(
        "chat",
        epilog=examples(
            "export LORAGATE_API_KEY=lg-...",
            "loragate chat acme/support",
            'loragate chat acme/support@v2 --message "I smell gas. What now?" --temperature 0',
            'loragate chat acme/base --message "Hello" --json',
        ),
    )(chat)


def chat(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TENANT/ADAPTER",
            help="acme/support, a version acme/support@v2, an alias acme/support@challenger, "
            "or the base model acme/base.",
        ),
    ],
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Send this one message and end.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt to begin with.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="The most tokens of an answer.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")
    ] = None,
    url: Annotated[
        str, typer.Option(envvar="LORAGATE_URL", metavar="URL", help="The server.")
    ] = "http://127.0.0.1:8000",
    key: Annotated[
        str | None,
        typer.Option(envvar="LORAGATE_API_KEY", metavar="KEY", help="A key of the tenant, lg-..."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Talk to an adapter of a running server, in the terminal.

    Ctrl-C stops an answer, /reset forgets what was said, /exit ends.
    """
    from loragate.server.cli.chat_client import ChatClient, ChatOptions, ChatTarget

    if as_json and message is None:
        raise typer.BadParameter("--json needs --message: a conversation is not one JSON object.")
    whom = ChatTarget.parse(target)
    if not key:
        raise KeyMissing(
            f"A key of tenant '{whom.tenant}' is needed: pass --key or set LORAGATE_API_KEY "
            f"(`loragate key create {whom.tenant}` makes one)."
        )
    start: Messages = [] if system is None else [{"role": "system", "content": system}]
    with ChatClient(url, whom, key, ChatOptions(max_tokens, temperature)) as client:
        if message is None:
            _converse(client, target, start)
        else:
            _ask_once(client, [*start, {"role": "user", "content": message}], as_json)


def _ask_once(client: "ChatClient", messages: Messages, as_json: bool) -> None:
    with client.ask(messages) as answer:
        for piece in answer:
            if not as_json:
                _write(piece)
    if as_json:
        print_json(
            {
                "text": answer.text,
                "adapter": answer.adapter,
                "finish_reason": answer.finish_reason,
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
                "ttft_seconds": answer.ttft_seconds,
            }
        )
    else:
        _write_end(answer)


def _converse(client: "ChatClient", target: str, start: Messages) -> None:
    """Until /exit, the end of the input, or Ctrl-C at the prompt. A failed turn is taken back."""
    say(
        "[bold]{target}[/]  [dim]Ctrl-C stops an answer, /reset forgets, /exit ends[/]",
        target=target,
    )
    _enable_line_editing()
    messages = list(start)
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        match line:
            case "":
                continue
            case "/exit" | "/quit":
                return
            case "/reset":
                messages = list(start)
                say("[dim]The conversation starts anew.[/]")
            case _:
                messages = _take_turn(client, messages, line)


def _take_turn(client: "ChatClient", messages: Messages, line: str) -> Messages:
    asked = [*messages, {"role": "user", "content": line}]
    answer = None
    try:
        with client.ask(asked) as answer:
            for piece in answer:
                _write(piece)
    except KeyboardInterrupt:
        typer.echo(" [stopped]")
    except LoragateError as error:
        # One failed turn, a rate limit for instance, must not cost the conversation.
        typer.echo(f"loragate: {error}", err=True)
        return messages
    else:
        _write_end(answer)
    if answer is None or not answer.text:
        return messages
    return [*asked, {"role": "assistant", "content": answer.text}]


def _write(piece: str) -> None:
    # What a model says must not steer the terminal.
    typer.echo("".join(c for c in piece if c.isprintable() or c in "\n\t"), nl=False)


def _write_end(answer: "Answer") -> None:
    ttft = "" if answer.ttft_seconds is None else f", first token after {answer.ttft_seconds:.2f} s"
    cut = ", cut off at max tokens" if answer.finish_reason == "length" else ""
    typer.echo()
    say(
        "[dim]{adapter}: {prompt} + {completion} tokens{ttft}{cut}[/]",
        adapter=answer.adapter,
        prompt=str(answer.prompt_tokens),
        completion=str(answer.completion_tokens),
        ttft=ttft,
        cut=cut,
    )


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401  (importing it gives `input` its history and editing keys)
    except ModuleNotFoundError:  # not on every platform
        return
