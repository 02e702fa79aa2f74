"""Config to live objects; the only caller of hydra.utils.instantiate."""

from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from lab.errors import UsageError


def make(node: dict[str, Any]) -> Any:
    """The object a `_target_` mapping describes; raises UsageError with the constructor's own sentence."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UsageError):
            raise cause from None
        if isinstance(cause, ValueError | TypeError):
            raise UsageError(f"{node.get('_target_')}: {cause}") from cause
        raise UsageError(str(error).split("\nfull_key")[0]) from error


def make_logger(node: dict[str, Any], run_dir: Path) -> Any:
    """The Lightning logger of a run, or None; `{run_dir}` in its values is filled in."""
    if node.get("_target_") is None:
        return None
    filled = {k: v.replace("{run_dir}", str(run_dir)) if isinstance(v, str) else v for k, v in node.items()}
    return make(filled)
