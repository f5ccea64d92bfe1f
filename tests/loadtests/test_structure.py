"""The shape of a package, as `make structure` counts it."""

from pathlib import Path
from textwrap import dedent

from bench.structure import Shape, measure

FILES = {
    "__init__.py": '"""A package of four rooms."""\n',
    "top.py": """\
        from loragate.tiny.low import deep
        from loragate.tiny.middle import Thing, helper

        def short(): ...
        """,
    "middle.py": """\
        from typing import TYPE_CHECKING

        from .low.deep import VALUE

        if TYPE_CHECKING:
            from loragate.tiny.top import short

        class Thing:
            async def longest(self):
                one = 1
                return one

        def helper():
            from loragate.tiny.aside import aside
        """,
    "aside.py": "import json\n",
    "low/__init__.py": "",
    "low/deep.py": "from loragate.tiny.low import inner\nVALUE = 1\n",
    "low/inner.py": "",
    "low/stub_pb2.py": "import loragate.tiny.top\n",
}


def shape_of(folder: Path, files: dict[str, str]) -> Shape:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return measure(folder, "loragate.tiny")


def test_rooms_levels_and_arrows_are_counted_by_what_is_imported(tmp_path: Path) -> None:
    shape = shape_of(tmp_path, FILES)
    assert (shape.files, shape.folders) == (3, 1)
    # top -> middle -> low, and top -> low; middle -> aside from inside a function. Not counted:
    # what only a type checker reads, what lies in the same room, and generated files.
    assert (shape.levels, shape.arrows) == (3, 4)
    assert shape.cycles == []
    assert (shape.modules, shape.longest_function) == (7, "middle.longest, 3")


def test_modules_that_import_each_other_are_told_and_count_as_one_level(tmp_path: Path) -> None:
    back = FILES | {"low/inner.py": "def late():\n    from loragate.tiny import middle\n"}
    shape = shape_of(tmp_path, back)
    assert shape.cycles == [["low.deep", "low.inner", "middle"]]
    assert shape.levels == 3


def test_a_package_without_imports_has_one_level(tmp_path: Path) -> None:
    shape = shape_of(tmp_path, {"one.py": "", "two.py": ""})
    assert (shape.levels, shape.arrows, shape.longest_function) == (1, 0, "none, 0")
