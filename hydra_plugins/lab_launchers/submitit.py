"""conf/hydra/launcher/slurm, slurm_a100x8 and local: jobs submitted to Slurm, or to this machine as if it were one."""

import shutil
from importlib.util import find_spec

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.lab_launchers import FetchFirst
from lab.config import ConfigError

if find_spec("hydra_plugins.hydra_submitit_launcher") is not None:  # lowrank-lab[slurm]
    from hydra_plugins.hydra_submitit_launcher import submitit_launcher

    class SlurmLauncher(FetchFirst, submitit_launcher.SlurmLauncher):
        """Hydra's Slurm launcher, fetching first."""

        def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
            """Raises ConfigError, before a folder is made, where there is no Slurm; a dry run needs none."""
            if not config.get("dry_run") and (shutil.which("sbatch") is None or shutil.which("srun") is None):
                raise ConfigError(
                    "no job was started: this machine has no Slurm (sbatch, srun) to submit to; start the sweep where "
                    "it is, or try it here with hydra/launcher=local."
                )
            super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    class LocalLauncher(FetchFirst, submitit_launcher.LocalLauncher):
        """Hydra's launcher of local processes, fetching first."""
