"""What a user may have meant by an option or key that does not exist."""

from collections.abc import Iterator, Sequence
from typing import Any

from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from lab.config import CONF, GROUPS
from lab.errors import nearest


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Hydra's complaint about a command line in one sentence an override, with what may have been meant."""
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    found = list(suggestions(overrides, str(error)))
    if found:
        return "\n".join(found)
    parts = [str(each).strip().splitlines()[0] for each in (error, error.__cause__) if each and str(each).strip()]
    return ("cannot read the overrides: " if isinstance(error, OverrideParseException) else "") + ": ".join(parts)


def _named(override: str, complaint: str) -> bool:
    """True where Hydra complains of this override; one it is content with may name an option of the user's own."""
    key, _, value = override.lstrip("+~").partition("=")
    return any(f"'{name}'" in complaint for name in (key, f"{key}/{value}"))


def suggestions(overrides: Sequence[str], complaint: str) -> Iterator[str]:
    """A sentence for each override complained of whose option or key is unknown, naming the nearest known ones."""
    chosen = {"experiment": ""}
    keys = None
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        folder = CONF / key
        if folder.is_dir() and value and not (folder / f"{value}.yaml").is_file():
            if not _named(override, complaint):
                continue
            options = sorted(path.stem for path in folder.glob("*.yaml"))
            if options and "," not in value and "/" not in key:
                yield f"{key}={value} is no option{nearest(value, options) or '.'} There are {', '.join(options)}."
            elif "," not in value:
                yield f"{key}={value} is no option{nearest(value, options) or '.'}"
        elif folder.is_dir():
            chosen[key] = value
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if not key or key.startswith("hydra") or (CONF / key).is_dir() or not _named(override, complaint):
            continue
        keys = keys or list(_keys(chosen))
        if key not in keys:
            leaves = {known.rsplit(".", 1)[-1]: known for known in keys}
            close = nearest(key, keys) or nearest(key.rsplit(".", 1)[-1], sorted(leaves))
            yield f"there is no key {key}{close or '.'} python -m lab.train --cfg job lists all."


def _keys(chosen: dict[str, str]) -> Iterator[str]:
    """Every key of the default config, with the options that were chosen."""
    from lab.config import RunConfig

    tree: dict[str, Any] = OmegaConf.to_container(OmegaConf.structured(RunConfig))  # type: ignore[assignment]
    defaults = OmegaConf.load(CONF / "config.yaml")
    picked = {name: option for item in defaults.defaults if OmegaConf.is_dict(item) for name, option in item.items()}
    for group in GROUPS:
        path = CONF / group / f"{chosen.get(group) or picked[group]}.yaml"
        if path.is_file():
            loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
            known = tree.get(group)
            tree[group] = {**(known if isinstance(known, dict) else {}), **(loaded if isinstance(loaded, dict) else {})}
    yield from _flat(tree, "")


def _flat(tree: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
