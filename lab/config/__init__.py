"""Configuration of a run: composed, checked, loaded and saved. No torch here."""

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lab import paths
from lab.config import bases, trust
from lab.config.references import escape, make_absolute, put, references_in
from lab.config.schema import (  # noqa: F401 (the groups' types are read from here)
    Adapter,
    Evaluate,
    EvidenceConfig,
    Hardware,
    Optim,
    RunConfig,
    Schedule,
)
from lab.config.validate import problems
from lab.errors import UsageError, nearest, refused
from lab.files import write_atomically
from lab.paths import CONF

GROUPS = ("model", "data", "init", "rank_strategy", "svd_policy", "hardware", "optim", "logger")
CONFIG = "config.yaml"  # in a run directory
DEEPEST = 50  # levels of a YAML


class ConfigError(CompactHydraException):
    """A mistake in the configuration; Hydra prints it as one sentence and exits with 1."""


def check(cfg: DictConfig, start: Path | None = None) -> RunConfig:
    """The typed root of a composed config; raises ConfigError for what types alone cannot see.

    Its paths are absolute, relative ones beginning at `start`, by default the working directory: so the run can be
    resumed from any other. What it leaves to its base (lab.config.bases) is filled in.
    """
    known = [item.name for item in fields(RunConfig)]
    for key in cfg:
        if key not in known:
            raise ConfigError(f"Unknown key {key!r}{nearest(str(key), known)}. Known keys: {', '.join(known)}.")
    absent = [key for key in known if key not in cfg]
    if absent:
        raise ConfigError(f"{absent[0]} was taken away and every run has one; leave out ~{absent[0]}.")
    try:
        plain = plain_of(cfg)
        if wrong := problems(plain):
            raise ConfigError("\n".join(wrong))
        absolute = paths.absolute(plain, start or Path.cwd())
        bases.resolve(absolute)
        config = from_plain(absolute)
        config.references = make_absolute(references_in(cfg, plain), plain, absolute)
        return config
    except OmegaConfBaseException as error:
        raise ConfigError(f"{complaint(error)}.") from None


def complaint(error: OmegaConfBaseException) -> str:
    """OmegaConf's complaint, in a line, behind the key it is about."""
    lines = str(error.msg or error).strip().splitlines() or [type(error).__name__]
    first = re.sub(r'^KeyError raised while resolving interpolation: "(.*)"$', r"\1", lines[0].rstrip("."))
    return f"{error.full_key}: {first}" if error.full_key else first


def plain_of(config: Any) -> dict[str, Any]:
    """A config, typed or composed, in plain types and resolved: of the live process, and for no file."""
    if isinstance(config, RunConfig):
        return asdict(config)
    node = config if OmegaConf.is_config(config) else OmegaConf.structured(config)
    plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def for_files(config: RunConfig) -> dict[str, Any]:
    """A config in plain types as files keep it: what came from the environment is a reference."""
    return put(plain_of(config), config.references)


def to_hydra(config: RunConfig) -> DictConfig:
    """A typed config as Hydra would have composed it, references and all."""
    node = OmegaConf.merge(OmegaConf.structured(RunConfig), put(escape(plain_of(config)), config.references))
    assert isinstance(node, DictConfig)
    return node


def from_plain(plain: dict[str, Any]) -> RunConfig:
    """The typed root of a plain mapping, such as a saved config.yaml."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), escape(plain)))
    assert isinstance(config, RunConfig)
    return config


def compose(*overrides: str) -> RunConfig:
    """The checked config that `python -m lab.train OVERRIDES` would run, for tests and notebooks."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from lab.config.arguments import with_test

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return check(hydra_compose("config", overrides=[with_test(override) for override in overrides]))


def load(run_dir: Path, start: Path | None = None) -> RunConfig:
    """The config of a run directory that may be anybody's, as `trust.check` allows it; `start` as there.

    Raises UsageError where it does not, and where there is no config that this version reads.
    """
    return _read(run_dir, start or Path.cwd(), anybodys=True, live=True)


def load_for_weights(run_dir: Path) -> RunConfig:
    """As `load`, for who trains no more: without the logger, which may need what only the run's environment had."""
    return _read(run_dir, Path.cwd(), anybodys=True, live=False)


def load_own(run_dir: Path) -> RunConfig:
    """The config that a job's starter has just written, or checked; for its processes alone."""
    return _read(run_dir, Path.cwd(), anybodys=False, live=True)


def _read(run_dir: Path, start: Path, *, anybodys: bool, live: bool) -> RunConfig:
    path = Path(run_dir) / CONFIG
    try:
        if not path.is_file():
            raise UsageError(f"{run_dir} is no run directory: it holds no {CONFIG}.")
        text = path.read_text(encoding="utf-8")
    except PermissionError as error:
        raise refused(path, error) from None
    except (UnicodeDecodeError, OSError) as error:
        raise _no_config(path, str(error)) from None
    try:
        check_shape(text)
        loaded = OmegaConf.create(text)
        if not isinstance(loaded, DictConfig):
            raise YAMLError("it holds no mapping")
        if anybodys and trust.start_folder(Path(run_dir), text) is None:
            raw = OmegaConf.to_container(loaded, resolve=False)
            assert isinstance(raw, dict)
            trust.check({str(key): value for key, value in raw.items()}, Path(run_dir), str(path), start)
        if not live:
            loaded.logger = {"_target_": None}
        plain = plain_of(loaded)
        config = from_plain(plain)
        config.references = references_in(loaded, plain)
        return config
    except (OmegaConfBaseException, YAMLError, AssertionError) as error:
        why = complaint(error) if isinstance(error, OmegaConfBaseException) else " ".join(str(error).split())
        raise _no_config(path, why) from None


def _no_config(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path} is not a config that this version reads ({why}); mend it, or use the version that wrote it, which "
        f"result.json names."
    )


def check_shape(text: str) -> None:
    """Raise YAMLError for a YAML that would cost its reader all time or memory: none of ours refers back or goes deep.

    Read as events, which make nothing.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise YAMLError("it refers back to a part of itself")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise YAMLError(f"it is nested more than {DEEPEST} deep")


def save(config: RunConfig, run_dir: Path, start: Path | None = None) -> None:
    """Write config.yaml, resolved but for the environment's, in plain types, where it does not say so already.

    The user's cache remembers that this run was started here, from the folder `start` (None: the working directory).
    """
    path, text = Path(run_dir) / CONFIG, OmegaConf.to_yaml(to_hydra(config))
    try:
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except PermissionError as error:
        raise refused(path, error) from None
    trust.remember(Path(run_dir), text, start or Path.cwd())
