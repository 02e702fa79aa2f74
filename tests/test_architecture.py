"""Who may import whom: read from the source, so that a lazy import counts too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LAB = Path(__file__).resolve().parent.parent / "lab"

# Every part may import only those before it, so every arrow runs down and there are no circles.
ORDER = (
    *("errors", "heartbeat", "paths", "command", "cache", "files", "record", "gpus", "hang", "process_group"),
    *("workers", "ending", "spectral", "ledger", "layer", "model", "data"),
    *("init", "rank_strategy", "svd_policy", "adapter", "switch", "sweep", "report"),
    *(
        "build",
        "references",
        "trust",
        "incompatible",
        "allowed",
        "config",
        "arguments",
        "suggest",
        "training",
        "environment",
        "assemble",
    ),
    *(
        "fetch",
        "dry_run",
        "account",
        "session",
        "worker",
        "launch",
        "resume",
        "before",
        "train",
        "replay",
        "selected",
        "export",
        "assets",
        "testing",
        "bench",
    ),
)

# Parts that see little of ours, whatever else is below them.
SEES_ONLY = {
    "errors": set(),
    "spectral": {"errors"},
    "paths": set(),
    "command": {"errors", "paths"},
    "cache": {"errors"},
    "record": {"errors", "cache"},
    "sweep": {"errors", "paths", "cache", "record"},
    "files": {"errors"},
    "report": {"errors", "paths", "command", "cache", "files", "record", "sweep"},
    "replay": {
        *("errors", "command", "cache", "files", "record", "ledger", "svd_policy", "spectral", "layer"),
        *("config", "build", "trust"),
    },
}
# Who alone may import a framework; bench compares us with them, so it may import each.
ONLY_IMPORTERS = {
    "peft": {"adapter", "bench"},
    "lightning": {"training", "session", "worker", "bench"},  # session starts the Trainer, worker quiets it
    "hydra": {"build", "config", "arguments", "suggest", "before", "train", "replay"},
    # gpus is a resolver
    "omegaconf": {"build", "references", "config", "suggest", "resume", "before", "train", "replay", "gpus", "bench"},
}
# Parts that must start fast or know nothing of training.
NEVER = {
    "record": {"torch", "numpy"},
    "cache": {"torch", "numpy"},
    "files": {"torch", "numpy"},
    "errors": {"torch", "numpy"},
    "report": {"torch", "transformers", "lightning", "peft", "hydra"},
    "sweep": {"torch", "transformers", "lightning", "peft", "hydra", "numpy"},
    "spectral": {"transformers", "lightning", "peft", "hydra"},
}


def part_of(path: Path) -> str:
    """`init` for lab/init/svd.py, `build` for lab/config/instantiate.py, `__init__` for the package itself."""
    return path.relative_to(LAB).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module a file imports when it runs, at any depth, as (absolute name, line)."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import; write it from lab."
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))


FILES = sorted(LAB.rglob("*.py"))
IMPORTS = [(path, name, line) for path in FILES for name, line in imports(path)]
OURS = [
    (path, name.split(".")[1], line)
    for path, name, line in IMPORTS
    if name.startswith("lab.") and name != "lab.__version__" and name.split(".")[1] != part_of(path)
]


def test_every_part_has_a_place_in_the_order():
    assert {part_of(path) for path in FILES} <= {*ORDER, "__init__"}


def test_imports_run_one_way():
    upward = [
        f"{path.relative_to(LAB)}:{line} imports {part}"
        for path, part, line in OURS
        if part_of(path) != "__init__" and ORDER.index(part) > ORDER.index(part_of(path))
    ]
    assert not upward


@pytest.mark.parametrize("part", SEES_ONLY)
def test_part_sees_only(part):
    others = {seen for path, seen, _ in OURS if part_of(path) == part}
    assert others <= SEES_ONLY[part]


def importers(package: str) -> set[str]:
    return {part_of(path) for path, name, _ in IMPORTS if name.split(".")[0] == package}


@pytest.mark.parametrize("package", ONLY_IMPORTERS)
def test_framework_has_few_importers(package):
    assert importers(package) <= ONLY_IMPORTERS[package]


@pytest.mark.parametrize("part", NEVER)
def test_part_never_imports(part):
    assert {package for package in NEVER[part] if part in importers(package)} == set()


def test_only_build_instantiates():
    callers = {part_of(path) for path, name, _ in IMPORTS if name in ("hydra.utils.instantiate", "hydra.utils.call")}
    assert callers <= {"build", "testing"}
