"""The program that renders chat templates for `templates`: see `child_process.loop`.

It renders with the function by which `rendering` does within a process, so a template says the same
in the server and in the trainer.
"""

from __future__ import annotations

import importlib
import logging
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

from loragate.adapters.child_process.loop import Job, Refused, serve

_MODULE = "transformers.utils.chat_template_utils"


def main() -> NoReturn:
    serve(_prepare)


def _prepare(preparation: dict[str, int]) -> Job:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    chat_template_utils = _import_alone()

    class Unfolded(ImmutableSandboxedEnvironment):
        """Computes nothing while it compiles: what is computed is kept, and slow to compile."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"optimized": False})

    # Where transformers takes its environment from.
    setattr(chat_template_utils, "ImmutableSandboxedEnvironment", Unfolded)  # noqa: B010
    most_characters = preparation["most_characters"]

    def render(job: dict[str, Any]) -> str:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[job["messages"]],
            tools=job["tools"],
            chat_template=job["template"],
            add_generation_prompt=job["add_generation_prompt"],
            continue_final_message=job["continue_final_message"],
            **job["variables"],
        )
        (text,) = rendered
        if len(text) > most_characters:
            raise Refused(f"it writes {len(text)} characters, more than {most_characters}")
        return text

    return render


def _import_alone() -> ModuleType:
    """The one module of transformers that renders, without all that its package imports: a tenth of
    the time and a third of the memory, each time that a child has to be replaced.
    """
    try:
        _stand_in_for_packages()
        return importlib.import_module(_MODULE)
    except Exception:  # noqa: BLE001 - of another release, which is made up in another way
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
            del sys.modules[name]
        return importlib.import_module(_MODULE)


def _stand_in_for_packages() -> None:
    """Makes a package of the two around the module, with what the module takes from them."""
    found = find_spec("transformers")
    assert found is not None
    assert found.submodule_search_locations is not None
    folders = list(found.submodule_search_locations)
    package, utils = ModuleType("transformers"), ModuleType("transformers.utils")
    package.__path__ = folders
    utils.__path__ = [f"{folder}/utils" for folder in folders]
    log, available = ModuleType("transformers.utils.logging"), ModuleType("available")
    setattr(log, "get_logger", logging.getLogger)  # noqa: B010 - a module that we make
    setattr(utils, "logging", log)  # noqa: B010
    for name, answer in (("jinja", True), ("torch", False), ("vision", False)):
        setattr(available, f"is_{name}_available", lambda answer=answer: answer)
    sys.modules |= {
        "transformers": package,
        "transformers.utils": utils,
        "transformers.utils.logging": log,
        "transformers.utils.import_utils": available,
    }


if __name__ == "__main__":
    main()
