"""Trust: a run's or study's directory may make this machine run our code, and nothing of a stranger's unasked.

Whatever names code (`_target_`, at any depth) is checked before anything is constructed. Allowed are classes that can
do what the lab would ask of them, of the lab itself and of installed packages, and the user's own modules under the
folder that a command is given in. What this user started here is remembered, and needs no more.
"""

import hashlib
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from lab import paths
from lab.cache import cache_dir, keep_json, read_json
from lab.config.instantiate import locate
from lab.errors import UsageError

VARIABLE = "LAB_TRUST"  # names that `trust=…` gives, separated by commas; a job's processes inherit it
METHODS = {  # by group: the methods that the lab calls, and how many arguments it gives each
    "model": {"tokenizer": 0, "load": 2},
    "data": {"load": 0},
    "init": {"factors": 6},
    "rank_strategy": {"allocate": 5},
    "svd_policy": {"decide": 2},
    "logger": {"log_metrics": 2, "log_hyperparams": 1, "finalize": 1},
}
NEEDS = {"init": ("needs",), "rank_strategy": ("needs",)}  # attributes beside them, of a class or of its instances
LIBRARIES = ("site-packages", "dist-packages")
ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:")
ALLOWED_OF_HYDRA = ("hydra.mode", "hydra/launcher", "hydra/sweeper", "hydra.sweep.dir", "hydra.run.dir")
CONTINUES = ("resume", "resume_study", "dry_run")  # what no declaration may hold for its jobs


def allow(names: str) -> None:
    """Take what the user trusts, for this process and those it starts: packages, or one of the words of a refusal."""
    given = [name.strip() for name in names.split(",") if name.strip()]
    if not given or not all(re.fullmatch(r"[\w.]+", name) for name in given):
        raise UsageError(f"trust={names} names no package; write trust=PACKAGE, or several with commas between.")
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*_trusted(), *given]))


def allow_each(given: Sequence[str]) -> None:
    """As `allow`, of an option that may be given more than once."""
    for names in given:
        allow(names)


def remember(folder: Path, text: str, start: Path) -> None:
    """Note in the user's cache that a directory was started here, from the folder `start`, with this config."""
    record = {"folder": str(folder.resolve()), "sha256": _sha256(text), "start": str(start)}
    place = _place(folder)
    if place is not None and read_json(place) != record:
        keep_json(place, record)


def start_folder(folder: Path, text: str) -> Path | None:
    """The folder that a directory was started from, where it was here and with this very config; else None."""
    known = read_json(_place(folder))
    same = isinstance(known, dict) and (known.get("folder"), known.get("sha256")) == (
        str(folder.resolve()),
        _sha256(text),
    )
    return Path(known["start"]) if same else None


def check(plain: Mapping[str, Any], place: Path, named: str, start: Path | None = None) -> None:
    """Refuse a config, as saved and unresolved, that would run or read or write what is a stranger's to choose.

    `place` is the directory that it came with, `named` says where it stands in it, `start` is the folder where the
    command was given (None: the working directory). Raises UsageError; nothing has been constructed then.
    """
    start = start or Path.cwd()
    for key, value in _leaves(plain):
        _check_text(key, value, place, named)
    for key, node in _nodes(plain):
        _check_target(key, node["_target_"], place, named, start)


def check_policy(settings: Mapping[str, Any], place: Path, named: str) -> None:
    """As `check`, of the settings of a policy."""
    check({"svd_policy": settings}, place, named)


def check_links(run_dir: Path) -> None:
    """Refuse a directory that would have what is written into it land elsewhere."""
    root = run_dir.resolve()
    for path in sorted(root.rglob("*")):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise UsageError(
                f"{path} is a link to {path.readlink()}, outside the run, which did not start here; remove the link "
                f"or copy the file in."
            )


def check_overrides(overrides: list[str], place: Path, named: str) -> None:
    """Refuse overrides of a study that was not started here which Hydra would follow elsewhere or make code of."""
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+~")
        if "${" in override:
            _refuse(f"{named} has the override {override!r}, a reference", "references")
        if key.startswith("hydra") and key.split("@")[0] not in ALLOWED_OF_HYDRA:
            _refuse(f"{named} has the override {override!r}, which tells Hydra what to run and where", "hydra")
        if "." not in key and not re.fullmatch(r"[^/\\]*", value.replace("..", "/")):
            _refuse(f"{named} has the override {override!r}, which names a file by its path", "hydra")
        for match in re.finditer(r"_target_['\"]?\s*[=:]\s*['\"]?([^\s,'\"}\]]*)", override):
            _check_target(key.removesuffix("._target_"), match[1], place, f"{named} ({override})", Path.cwd())


def check_declared(overrides: list[str], place: Path, named: str) -> None:
    """As `check_overrides`, of the arms and common overrides of study.json, which say what is trained and no more."""
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key in CONTINUES or key.startswith("hydra"):
            raise UsageError(
                f"{named} has the override {override!r} for its jobs, which no study declares; restore it."
            )
    check_overrides(overrides, place, named)


def _check_text(key: str, value: Any, place: Path, named: str) -> None:
    for text in (key, value):
        if isinstance(text, str) and "${" in text:
            if "${" in ENVIRONMENT.sub("", text):
                raise UsageError(
                    f"{named} has {key}={text!r}, a reference that no saved config holds; write its value."
                )
            _refuse(f"{named} has {key}={text!r}, which reads your environment", "environment")
    if isinstance(value, str) and (paths.is_output(key) or key.startswith("logger.")):  # whose name is a folder's, too
        inside = place.resolve() / value.replace("{run_dir}", str(place.resolve()))
        if not inside.resolve().is_relative_to(place.resolve()):
            _refuse(f"{named} has {key}={value!r}, which writes outside the run", "paths")


def _check_target(key: str, target: Any, place: Path, named: str, start: Path) -> None:
    if target is None:  # logger=none
        return
    what = f"{named} has {key}._target_={target!r}"
    if not isinstance(target, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target):
        raise UsageError(f"{what}, which names no class; restore it.")
    package = target.split(".")[0]
    if package in _trusted():
        return
    kind = _kind(package, place, start)
    if kind is None or (kind != "own" and key.startswith("metrics.")):
        _refuse(f"{what}, code that is neither the lab's nor yours", package)
    try:
        chosen = locate(target)
    except ImportError as error:
        raise UsageError(f"{what}, which cannot be imported ({error}); mend the path.") from None
    home = str(getattr(chosen, "__module__", None) or "").split(".")[0]
    if isinstance(chosen, ModuleType) or not callable(chosen) or _kind(home, place, start) != kind:
        _refuse(f"{what}, which is not {package}'s own", package)
    if kind != "own" and not _fits(chosen, key):
        _refuse(f"{what}, which is no class that the lab would make there", package)


def _kind(package: str, place: Path, start: Path) -> str | None:
    """Owner of a top-level module: the lab, an installed package or the user (own); None for anybody else."""
    if package == "lab":
        return "lab"
    if package in sys.stdlib_module_names or package in ("builtins", "__main__", ""):
        return None
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    where = [Path(each).resolve() for each in spec.submodule_search_locations or ([spec.origin] if spec.origin else [])]
    libraries = [Path(entry).resolve() for entry in sys.path if Path(entry).name in LIBRARIES]
    if where and all(any(each.is_relative_to(library) for library in libraries) for each in where):
        return "installed"
    return "own" if where and all(_is_own(each, place.resolve(), start.resolve()) for each in where) else None


def _is_own(module: Path, place: Path, start: Path) -> bool:
    """True under the user's folder, but for what lies with the directory: it may have come together with it."""
    if not module.is_relative_to(start) or start.is_relative_to(place):
        return False
    came_with = start / place.relative_to(start).parts[0] if place.is_relative_to(start) else place
    return not module.is_relative_to(came_with)


def _fits(chosen: Any, key: str) -> bool:
    """True for a class with the methods of the group its place is in, or, deeper, of any group."""
    if not isinstance(chosen, type):
        return False
    parts = key.split(".")
    groups = [parts[0]] if len(parts) == 1 else list(METHODS)
    return any(_has(chosen, group) for group in groups)


def _has(chosen: type, group: str) -> bool:
    methods = METHODS.get(group)
    if methods is None:
        return False
    fields = {*dir(chosen), *getattr(chosen, "__annotations__", {})}
    return all(name in fields for name in NEEDS.get(group, ())) and all(
        _takes(getattr(chosen, name, None), count) for name, count in methods.items()
    )


def _takes(method: Any, count: int) -> bool:
    """True for a method written in Python that can be called with so many arguments."""
    if not inspect.isfunction(inspect.unwrap(method) if callable(method) else method):
        return False
    try:
        inspect.signature(method).bind(None, *range(count))
    except TypeError:
        return False
    return True


def _refuse(what: str, word: str) -> None:
    """Raise UsageError unless the user trusts the word."""
    if word not in _trusted():
        raise UsageError(
            f"{what}, and this directory was not started here; if you trust where it comes from, "
            f"add trust={word} (lab.train) or --trust {word}."
        )


def _trusted() -> list[str]:
    return [name for name in os.environ.get(VARIABLE, "").split(",") if name]


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, key)
    else:
        yield key, value


def _nodes(value: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping that names a target, with where it stands, the items of a list as if each were a key."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield key, value
        for name, item in value.items():
            yield from _nodes(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _nodes(item, f"{key}.{position}")


def _place(folder: Path) -> Path | None:
    kept = cache_dir("trusted")
    return None if kept is None else kept / f"{_sha256(str(folder.resolve()))[:32]}.json"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
