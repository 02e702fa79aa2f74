"""conf/hydra/launcher/joblib_gpus: jobs beside each other on this machine."""

from importlib.util import find_spec

from hydra_plugins.lab_launchers import FetchFirst

if find_spec("hydra_plugins.hydra_joblib_launcher") is not None:  # lowrank-lab[slurm]
    from hydra_plugins.hydra_joblib_launcher import joblib_launcher

    class JoblibLauncher(FetchFirst, joblib_launcher.JoblibLauncher):
        """Hydra's joblib launcher, fetching first."""
