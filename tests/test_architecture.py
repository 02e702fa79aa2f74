"""Who may import whom: read from the source, so that a lazy import counts too."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

LAB = Path(__file__).resolve().parent.parent / "lab"

# A room, a folder or a file of lab/, imports only from floors below its own: so every arrow runs down, and there are no
# circles. `lab` is the package's own __init__.py, which imports the report when it is first asked to load one.
FLOORS: dict[int, tuple[str, ...]] = {
    10: ("train", "before", "export", "bench", "suggest", "evaluate", "fetch"),
    9: ("launch",),
    8: ("run",),
    7: ("evidence", "instruments", "editors", "replay", "testing", "assets"),
    6: ("adapter", "training", "svd_policy"),
    5: ("init", "rank_strategy", "ledger", "lab"),
    4: ("sweep", "report", "data"),
    3: ("spectral", "config", "model", "verdict"),
    2: ("layer", "record", "cache", "process", "command"),
    1: ("structure", "files", "paths", "errors"),
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}

# Rooms that see little of ours, whatever else is below them.
SEES_ONLY = {
    "structure": set(),
    "errors": set(),
    "files": set(),
    "paths": set(),
    "spectral": {"errors", "process"},
    "command": {"errors", "paths"},
    "cache": {"files"},
    "verdict": {"errors", "record"},
    "record": {"errors", "files"},
    "sweep": {"errors", "paths", "record", "verdict"},
    "report": {"errors", "paths", "command", "record", "verdict"},
    "training": {  # neither pairs nor spectra
        *("errors", "structure", "files", "cache", "record", "process", "model", "data", "config", "lab"),
    },
}
# Who alone may import a framework; bench compares us with them, so it may import each.
ONLY_IMPORTERS = {
    "peft": {"adapter", "editors", "bench"},  # editors: AdaLoRA's allocator
    "lightning": {"training", "editors", "instruments", "run", "launch", "bench"},  # launch quiets it
    "hydra": {"config", "before", "train"},
    # process: which GPU is free is a resolver
    "omegaconf": {"config", "launch", "before", "train", "process", "bench"},
}
# Rooms that must start fast or know nothing of training.
NEVER = {
    "record": {"torch", "numpy"},
    "cache": {"torch", "numpy"},
    "files": {"torch", "numpy"},
    "errors": {"torch", "numpy"},
    "structure": {"torch", "numpy"},
    "verdict": {"torch", "transformers", "lightning", "peft", "hydra"},
    "report": {"torch", "transformers", "lightning", "peft", "hydra"},
    "sweep": {"torch", "transformers", "lightning", "peft", "hydra"},
    "spectral": {"transformers", "lightning", "peft", "hydra"},
    "evidence": {"lightning", "peft"},
}


def room_of(path: Path) -> str:
    """`init` for lab/init/svd.py, `layer` for lab/layer.py, `lab` for the package itself."""
    room = path.relative_to(LAB).with_suffix("").parts[0]
    return "lab" if room == "__init__" else room


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
ROOMS = {room_of(path) for path in FILES}


def target_of(name: str) -> str | None:
    """The room that an imported name is from: `lab.record.study.Study` is from record, `lab.__version__` from lab."""
    package, _, rest = name.partition(".")
    if package != "lab":
        return None
    room = rest.split(".")[0]
    return room if room in ROOMS else "lab"


OURS = [
    (path, room, line)
    for path, name, line in IMPORTS
    if (room := target_of(name)) is not None and room != room_of(path)
]


def test_every_room_has_a_floor():
    assert set(FLOOR) == ROOMS


def test_every_arrow_runs_down():
    upward = [
        f"{path.relative_to(LAB)}:{line} (floor {FLOOR[room_of(path)]}) imports {room} (floor {FLOOR[room]})"
        for path, room, line in OURS
        if FLOOR[room] >= FLOOR[room_of(path)]
    ]
    assert not upward


@pytest.mark.parametrize("code", ["import lab", "import lab as l", "from lab import __version__", "import lab.report"])
def test_an_import_of_the_package_itself_is_seen(code, tmp_path):
    source = tmp_path / "x.py"
    source.write_text(f"def f():\n    {code}\n")
    rooms = {target_of(name) for name, _ in imports(source)}
    assert rooms <= {"lab", "report"}
    assert rooms


def test_every_module_of_ours_that_is_imported_exists():
    """Lazy imports too, which no type checker that ignores missing libraries would miss."""
    absent = []
    for path, name, line in IMPORTS:
        parts = name.split(".")
        module = LAB.joinpath(*parts[1:-1]) if parts[0] == "lab" and len(parts) > 2 else None
        if module is not None and not (module.is_dir() or module.with_suffix(".py").is_file()):
            absent.append(f"{path.relative_to(LAB)}:{line} imports {name}")
    assert not absent


@pytest.mark.parametrize("room", SEES_ONLY)
def test_room_sees_only(room):
    others = {seen for path, seen, _ in OURS if room_of(path) == room}
    assert others <= SEES_ONLY[room]


def importers(package: str) -> set[str]:
    return {room_of(path) for path, name, _ in IMPORTS if name.split(".")[0] == package}


@pytest.mark.parametrize("package", ONLY_IMPORTERS)
def test_framework_has_few_importers(package):
    assert importers(package) <= ONLY_IMPORTERS[package]


@pytest.mark.parametrize("room", NEVER)
def test_room_never_imports(room):
    assert {package for package in NEVER[room] if room in importers(package)} == set()


def test_only_config_instantiates():
    callers = {room_of(path) for path, name, _ in IMPORTS if name in ("hydra.utils.instantiate", "hydra.utils.call")}
    assert callers <= {"config", "testing"}


def test_no_two_test_files_share_a_name():
    """Folders of tests are no packages, so pytest imports each file by its bare name, and the second cannot be."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py")
    assert not [name for name, times in names.items() if times > 1]
