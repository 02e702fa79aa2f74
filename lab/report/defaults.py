"""Default arm of a plain multirun, by the shipped YAMLs as they lie. No hydra."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lab.paths import CONF
from lab.report.arms import Arm


def default_arm(arms: Sequence[Arm]) -> str | None:
    """The arm that differs from the others only by having the config's defaults; None where there is none."""
    matches = [arm.name for arm in arms if all(map(_is_default, arm.differs.items()))]
    return matches[0] if len(matches) == 1 else None


def _is_default(item: tuple[str, str]) -> bool:
    key, value = item
    usual = default(key)
    if usual is None or usual in (value, value.split("[")[0]):  # svd[gradient] is the option svd
        return usual is not None
    try:
        return float(usual) == float(value)  # 1e-4 and 0.0001
    except ValueError:
        return False


def default(key: str) -> str | None:
    """The default option of a group, or the default of a setting (`rank`, `init.size`), as text; None for no such."""
    root = _load(CONF / "config.yaml")
    groups = {k: v for entry in root["defaults"] if isinstance(entry, dict) for k, v in entry.items()}
    if key in groups:
        return str(groups[key])
    head, _, rest = key.partition(".")
    node: Any = root
    if rest and groups.get(head):
        node, key = _load(CONF / head / f"{groups[head]}.yaml"), rest
    for step in key.split("."):
        if not isinstance(node, dict) or step not in node:
            return None
        node = node[step]
    return str(node)


def _load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
