"""Hydra's launchers, with one step before: what the jobs need from the hub is fetched where the sweep starts."""

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from lab.config import ConfigError
from lab.errors import UsageError
from lab.launch import fetch


class FetchFirst:
    """Mixed into a launcher: download for all jobs, once; then launch them with HF_HUB_OFFLINE=1."""

    hydra_context: Any
    config: Any

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
        """Raises ConfigError, before any job is started, for what cannot be had."""
        loader = self.hydra_context.config_loader
        differing = {tuple(item for item in job if _names_files(item)) for job in job_overrides}
        try:
            fetch.fetch(_plain(loader.load_sweep_config(self.config, list(job))) for job in sorted(differing))
        except UsageError as error:
            raise ConfigError(f"no job was started: {error}") from None
        with fetch.offline():
            return super().launch(job_overrides, initial_job_idx)  # type: ignore[misc]


def _names_files(override: str) -> bool:
    return override.lstrip("+~").split("=")[0].split(".")[0].split("@")[0] in fetch.PARTS


def _plain(config: Any) -> dict[str, Any]:
    return {part: OmegaConf.to_container(config[part], resolve=True) for part in ("model", "data", "init")}
