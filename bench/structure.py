"""The packages' shape in numbers, read from their syntax trees; nothing is imported or run.

A room is a file or a folder at the top of a package, and an arrow runs from a room to another of
the same package of which it imports something. Imports under TYPE_CHECKING do not count; those
inside functions do.

    make structure
    make structure ARGS="--path ../another-checkout"
"""

import argparse
import ast
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("server", "adapters", "trainer")
GENERATED = ("_pb2.py", "_pb2_grpc.py")

Graph = Mapping[str, set[str]]


@dataclass(frozen=True, slots=True)
class Module:
    """A file of a package, by its dotted name within the package; "" is the package itself."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Shape:
    """What is printed of one package."""

    files: int
    folders: int
    levels: int
    arrows: int
    cycles: list[list[str]]
    modules: int
    lines: int
    median_lines: int
    longest_function: str


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints the shape of loragate's packages.")
    parser.add_argument("--path", type=Path, default=Path(), help="the checkout to be measured")
    root: Path = parser.parse_args().path
    found = {
        name: measure(folder, f"loragate.{name}")
        for name in PACKAGES
        if (folder := root / name / "loragate" / name).is_dir()
    }
    if not found:
        parser.error(f"{root} is no checkout of loragate: it has no server/loragate/server.")
    print_table(found)
    for name, shape in found.items():
        for cycle in shape.cycles:
            print(f"{name}: these import each other: {', '.join(cycle)}")


def measure(folder: Path, package: str) -> Shape:
    modules = read_modules(folder)
    imports = {name: imports_of(module, package, modules) for name, module in modules.items()}
    rooms: dict[str, set[str]] = {module.room: set() for module in modules.values() if module.name}
    for name, module in modules.items():
        if name:
            rooms[module.room] |= {modules[other].room for other in imports[name] if other}
    for room, others in rooms.items():
        others.discard(room)
    sizes = [module.lines for module in modules.values()]
    return Shape(
        files=sum((folder / f"{room}.py").is_file() for room in rooms),
        folders=sum((folder / room).is_dir() for room in rooms),
        levels=count_levels(rooms),
        arrows=sum(map(len, rooms.values())),
        cycles=[sorted(group) for group in strongly_connected(imports) if len(group) > 1],
        modules=len(sizes),
        lines=sum(sizes),
        median_lines=round(statistics.median(sizes)),
        longest_function=longest_function(modules),
    )


def read_modules(folder: Path) -> dict[str, Module]:
    """All modules of the package in this folder, by name."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        if path.name.endswith(GENERATED):
            continue
        text = path.read_text(encoding="utf-8")
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(name, path, ast.parse(text, str(path)), len(text.splitlines()))
    return modules


def imports_of(module: Module, package: str, modules: Mapping[str, Module]) -> set[str]:
    """The modules of its own package that it imports, by name; itself is left out."""
    found = set()
    for imported in _imported_names(module, package):
        if imported == package or imported.startswith(f"{package}."):
            name = imported.removeprefix(package).removeprefix(".")
            while name not in modules:  # a class or a function: what holds it
                name = name.rpartition(".")[0]
            found.add(name)
    return found - {module.name}


def _imported_names(module: Module, package: str) -> Iterator[str]:
    for node in _run_nodes(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                here = f"{package}.{module.name}".rstrip(".").split(".")
                up = node.level - (module.path.name == "__init__.py")
                start = ".".join([*here[: len(here) - up], *filter(None, [node.module])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def _run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from _run_nodes(other)
        else:
            yield child
            yield from _run_nodes(child)


def count_levels(graph: Graph) -> int:
    """How many nodes the longest chain of arrows has; those that import each other are one."""
    groups = strongly_connected(graph)
    group_of = {node: index for index, group in enumerate(groups) for node in group}
    levels: list[int] = []
    for index, group in enumerate(groups):  # whatever a group imports comes before it
        below = {group_of[other] for node in group for other in graph[node]} - {index}
        levels.append(1 + max((levels[other] for other in below), default=0))
    return max(levels, default=0)


def strongly_connected(graph: Graph) -> list[list[str]]:
    """Groups of nodes that reach each other, each after all that it reaches (Tarjan, 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in order:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], order[other])
        if lowest[node] == order[node]:
            start = stack.index(node)
            groups.append(stack[start:])
            del stack[start:]

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return groups


def longest_function(modules: Mapping[str, Module]) -> str:
    """Its name and lines, without its decorators."""
    longest, where = 0, "none"
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > longest:
                    longest, where = lines, f"{module.name or '__init__'}.{node.name}"
    return f"{where}, {longest}"


def print_table(found: Mapping[str, Shape]) -> None:
    rows = [
        ("", *found),
        ("rooms at the top", *(shape.files + shape.folders for shape in found.values())),
        ("  files", *(shape.files for shape in found.values())),
        ("  folders", *(shape.folders for shape in found.values())),
        ("levels", *(shape.levels for shape in found.values())),
        ("arrows between rooms", *(shape.arrows for shape in found.values())),
        ("import cycles", *(len(shape.cycles) for shape in found.values())),
        ("files in all", *(shape.modules for shape in found.values())),
        ("lines", *(shape.lines for shape in found.values())),
        ("median file, lines", *(shape.median_lines for shape in found.values())),
        ("longest function, lines", *(shape.longest_function for shape in found.values())),
    ]
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for first, *others in texts:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print("  ".join([first.ljust(widths[0]), *cells]).rstrip())


if __name__ == "__main__":
    main()
