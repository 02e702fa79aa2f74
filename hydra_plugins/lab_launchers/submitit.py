"""conf/hydra/launcher/slurm, slurm_a100x8 and local: jobs submitted to Slurm, or to this machine as if it were one."""

from importlib.util import find_spec

from hydra_plugins.lab_launchers import FetchFirst

if find_spec("hydra_plugins.hydra_submitit_launcher") is not None:  # lowrank-lab[slurm]
    from hydra_plugins.hydra_submitit_launcher import submitit_launcher

    class SlurmLauncher(FetchFirst, submitit_launcher.SlurmLauncher):
        """Hydra's Slurm launcher, fetching first."""

    class LocalLauncher(FetchFirst, submitit_launcher.LocalLauncher):
        """Hydra's launcher of local processes, fetching first."""
