"""The packages import each other in one direction, and only ``compat.py`` touches internals of other libraries."""

import ast
import importlib
import inspect
import textwrap
from functools import cache
from pathlib import Path

import pytest
from lightning.pytorch.loggers import WandbLogger

import fish_lightning

PACKAGE = Path(fish_lightning.__file__).parent
FILES = sorted(file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py"))
ENTRY_POINTS = {"train", "evaluate", "predict", "prepare", "compare", "ensemble", "export", "serve"}
#: Packages, and what none of their modules imports.
FORBIDDEN = {
    "data": {"models", "training", "resume", "report", "sweeps", "exporting", "cli"},
    "models": {"training", "resume", "report", "sweeps", "exporting", "cli"},
    "evaluation": {"models", "training", "resume", "report", "sweeps", "cli", "lightning"},
    "plotting": {"models", "training", "resume", "report", "sweeps", "cli", "lightning"},
    "report": {"training", "resume", "sweeps"},
    "training": {"report", "sweeps"},
    "predicting": {"training", "report", "sweeps"},
    "exporting": {"training", "resume", "report", "sweeps", "cli"},
    "resume": {"report", "sweeps"},
    "serving": set(),
}


@cache
def parsed(file):
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


def imported(tree):
    """Yield the full name of every module, function and class that a module imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def rooms(tree):
    """Return the packages of the project that a module imports, and the libraries."""
    names = (name.split(".") for name in imported(tree))
    return {parts[1] if parts[0] == "fish_lightning" else parts[0] for parts in names}


def private_accesses(tree):
    """Yield private names that a module imports, or reads from anything but itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "os")  # os._exit
            if not own:
                yield ast.unparse(node)
    for name in imported(tree):
        if any(part.startswith("_") and not part.startswith("__") for part in name.split(".")):
            yield name


def module(name):
    """Return the file of a module of the project, or of the one that a name is imported from; None for others."""
    package, *parts = name.split(".")
    places = [Path(*parts[:n], leaf) for n in (len(parts), len(parts) - 1) if n > 0 for leaf in ("__init__.py",)]
    places += [Path(*parts[: n - 1], f"{parts[n - 1]}.py") for n in (len(parts), len(parts) - 1) if n > 0]
    return next((file for file in places if package == "fish_lightning" and file in FILES), None)


@pytest.mark.parametrize("room", FORBIDDEN)
def test_packages_import_in_one_direction(room):
    files = [file for file in FILES if file.parts[0] == room]
    seen = set(files)
    for file in files:  # and what they import, in turn
        wrong = rooms(parsed(file)) & (FORBIDDEN[room] | ENTRY_POINTS)
        assert not wrong, f"{file}, which {room} imports, imports {', '.join(sorted(wrong))}"
        new = {found for name in imported(parsed(file)) if (found := module(name))} - seen
        new -= {Path("compat.py")}  # which imports each library where it is used
        seen |= new
        files += sorted(new)


def test_only_compat_touches_internals_of_libraries():
    found = {str(file): list(private_accesses(parsed(file))) for file in FILES}
    assert {file: names for file, names in found.items() if names}.keys() == {"compat.py"}, found


def own_names(tree):
    """Return the private attributes and methods that a class has of itself."""
    nodes = list(ast.walk(tree))
    of_self = (node for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls"))
    names = {node.attr for node in of_self} | {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return {name for name in names if name.startswith("_") and not name.endswith("__")}


@cache
def source(cls):
    return ast.parse(textwrap.dedent(inspect.getsource(cls)))


def test_subclasses_use_no_private_names_of_their_libraries():
    subclasses = [(file, node) for file in FILES for node in parsed(file).body if getattr(node, "bases", ())]
    for file, node in subclasses:
        cls = getattr(importlib.import_module(".".join(("fish_lightning", *file.with_suffix("").parts))), node.name)
        for base in cls.__mro__[1:]:
            if base.__module__.partition(".")[0] in ("lightning", "torch", "hydra", "optuna", "albumentations"):
                assert not own_names(node) & own_names(source(base)), f"{file}: {node.name}, a {base.__qualname__}"


def test_private_names_of_a_library_are_seen():
    assert "_experiment" in own_names(source(WandbLogger))
