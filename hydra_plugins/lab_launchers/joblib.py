"""Name of the launcher `beside` while it was joblib's: a study that was begun under it goes on."""

from typing import Any

from hydra_plugins.lab_launchers.beside import BesideLauncher


class JoblibLauncher(BesideLauncher):
    """Takes joblib's other settings, and needs none of them."""

    def __init__(self, n_jobs: int | None, **joblibs: Any) -> None:
        super().__init__(None if n_jobs == -1 else n_jobs)  # joblib's for as many as it likes
