import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A file imports from its own room and from those before it in this list.
ROOMS = (
    "errors runtime data text models workdir inference hub rewards sources "
    "evaluation training stages api main"
).split()
# What the paper defines: these import nothing of BLUE.
PAPER = {
    "blue.rewards.functions",
    "blue.rewards.advantages",
    "blue.training.losses",
    "blue.evaluation.metrics",
}
MOST_FILES = 15  # in one room
FILES = sorted(p for p in ROOT.glob("blue/**/*.py") if p.name != "__init__.py")


def imports(path):
    """Dotted names of the modules and names that `path` imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def modules_imported(path):
    """Modules of BLUE that `path` imports."""
    known = {module_of(file) for file in FILES}
    for name in imports(path):
        top, _, rest = name.partition(".")
        assert top not in {"configs", "tests", "tools", "experiments"}, name
        if top == "blue" and rest:
            package = name.rpartition(".")[0]
            found = name if name in known else package
            assert found in known, f"{path}: {name} is no module"
            yield found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    room = module_of(path).split(".")[1]
    for name in modules_imported(path):
        assert ROOMS.index(name.split(".")[1]) <= ROOMS.index(room), name
        assert module_of(path) not in PAPER, name


def test_no_circle():
    graph = {module_of(path): set(modules_imported(path)) for path in FILES}
    graphlib.TopologicalSorter(graph).prepare()


def test_rooms_are_small():
    for folder in {path.parent for path in FILES}:
        modules = [path for path in FILES if path.parent == folder]
        assert len(modules) <= MOST_FILES, folder


def test_every_room_is_in_the_list():
    assert {module_of(path).split(".")[1] for path in FILES} <= set(ROOMS)


def test_configs_import_only_configs():
    for path in (ROOT / "configs").glob("*.py"):
        tops = {name.partition(".")[0] for name in imports(path)}
        assert tops <= {"configs", "ml_collections"}, path
