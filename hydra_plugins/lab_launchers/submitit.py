"""conf/hydra/launcher/slurm, slurm_a100x8 and local: jobs submitted to Slurm, or to this machine as if it were one."""

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from hydra_plugins.lab_launchers import FetchFirst
from lab.config import ConfigError

if find_spec("hydra_plugins.hydra_submitit_launcher") is not None:  # lowrank-lab[slurm]
    from hydra_plugins.hydra_submitit_launcher import submitit_launcher

    class SlurmLauncher(FetchFirst, submitit_launcher.SlurmLauncher):
        """Hydra's Slurm launcher, fetching first."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
            """Raises ConfigError where there is no Slurm to submit to, before anything is fetched."""
            if shutil.which("sbatch") is None or shutil.which("srun") is None:
                raise ConfigError(
                    "no job was started: this machine has no Slurm (sbatch, srun) to submit to; start the sweep where "
                    "it is, or try it here with hydra/launcher=local."
                )
            return super().launch(job_overrides, initial_job_idx)

    class LocalLauncher(FetchFirst, submitit_launcher.LocalLauncher):
        """Hydra's launcher of local processes, fetching first."""
