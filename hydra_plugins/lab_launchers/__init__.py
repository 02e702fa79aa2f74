"""Hydra's launchers, with one step before: what the jobs need from the hub is fetched where the sweep starts."""

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from lab import config as configuration
from lab.config import ConfigError
from lab.errors import UsageError
from lab.launch import fetch

PARTS = ("model", "data", "init")  # of a config: what may name something on the hub


class FetchFirst:
    """Mixed into a launcher: download for all jobs, once; then launch them with HF_HUB_OFFLINE=1."""

    hydra_context: Any
    config: Any

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
        """Raises ConfigError, before any job is started, for what cannot be had."""
        loader = self.hydra_context.config_loader
        differing = {tuple(item for item in job if _names_files(item)) for job in job_overrides}
        composed = (loader.load_sweep_config(self.config, list(job)) for job in sorted(differing))
        configs = (resumed(each) if each.get("resume") else each for each in composed)
        try:
            fetch.fetch(_plain(each) for each in configs if each is not None)
        except UsageError as error:
            raise ConfigError(f"no job was started: {error}") from None
        with fetch.offline():
            return super().launch(job_overrides, initial_job_idx)  # type: ignore[misc]


def resumed(composed: Any) -> Any:
    """The config of the run that a job continues; None where there is none that can be read, as the job will say."""
    from lab.launch import resume

    try:
        return resume.config_of(composed, list(composed.hydra.overrides.task))
    except (UsageError, ConfigError):
        return None


def _names_files(override: str) -> bool:
    return override.lstrip("+~").split("=")[0].split(".")[0].split("@")[0] in (*fetch.PARTS, "resume")


def _plain(config: Any) -> dict[str, Any]:
    plain = configuration.plain_of(OmegaConf.masked_copy(config, PARTS) if OmegaConf.is_config(config) else config)
    return {part: plain[part] for part in PARTS}
