"""The layout of the package: imports go down only, and docs/design.md draws what there is."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "spacy_earlyexit"
# From the top down; what stands on one line may not import from each other.
LEVELS = [
    ["cli"],
    ["conversion"],
    ["training"],
    ["calibration"],
    ["evaluation", "visuals"],
    ["pipeline"],
    ["model"],
    ["model.encoders"],
    ["model.kernels"],
    ["files"],
    ["errors", "about"],
]
LEVEL = {room: len(LEVELS) - i for i, rooms in enumerate(LEVELS) for room in rooms}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """The innermost room that a module is in."""
    return max((room for room in LEVEL if f"{module}.".startswith(f"{room}.")), key=len)


def imports(module: str) -> set[str]:
    """The package's own modules that one imports, also inside of functions and for types."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [part for part in package if part]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                target = [*base, *((node.module or "").split(".") if node.module else [])]
            elif (node.module or "").split(".")[0] == PACKAGE.name:
                target = node.module.split(".")[1:]
            else:
                continue
            for alias in node.names:
                whole = ".".join([*target, alias.name])
                found.add(whole if whole in MODULES else ".".join(target))
    return found - {module}


EDGES = {module: imports(module) for module in MODULES if module}


def test_the_modules_are_found():
    assert len(EDGES) > 50
    assert "model.engine" in EDGES["model.encoder_layer"]


@pytest.mark.parametrize("module", EDGES)
def test_imports_go_down_only(module):
    room = room_of(module)
    for other in EDGES[module]:
        if not other:
            continue  # the package itself has nothing but its version
        there = room_of(other)
        assert there == room or LEVEL[there] < LEVEL[room], f"{module} imports {other}"


def test_no_module_imports_itself_by_way_of_others():
    done: set[str] = set()

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(EDGES.get(module, ())):
                follow(other, (*path, module))
            done.add(module)

    for module in EDGES:
        follow(module, ())


def test_the_picture_shows_what_there_is():
    """Every room and module of the package stands on the page, and nothing else."""
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf8")
    table = [line.split("|")[1].strip(" `") for line in page.splitlines() if line.startswith("| `")]
    shown = {cell.removesuffix(".py").replace("/", ".") for cell in table}
    modules = {m for m, path in MODULES.items() if m and path.name != "__init__.py"}
    assert shown == modules
    picture = page.split("```")[1]
    for rooms in LEVELS:
        assert all(room.split(".")[-1] in picture for room in rooms)
