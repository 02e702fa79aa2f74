"""What an install may bring: versions that were tested, and none that is known to harm."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GROUPS = PROJECT["optional-dependencies"].values()
ASKED = [Requirement(line) for line in (*PROJECT["dependencies"], *(line for group in GROUPS for line in group))]
PINNED = {
    requirement.name.lower(): next(iter(requirement.specifier)).version
    for requirement in (
        Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
}
HARMFUL = {  # advisory -> the releases it is about
    "GHSA-w37p-236h-pfx3": [
        (name, version) for name in ("lightning", "pytorch-lightning") for version in ("2.6.2", "2.6.3")
    ],
    "GHSA-qqmf-gpg7-g8gw": [
        (name, version) for name in ("lightning", "pytorch-lightning") for version in ("2.6.4", "2.6.5")
    ],
}


@pytest.mark.parametrize("advisory", HARMFUL)
def test_releases_that_are_known_to_harm_cannot_be_installed(advisory):
    for name, version in HARMFUL[advisory]:
        found = [requirement for requirement in ASKED if requirement.name == name]
        assert found, f"{name} comes with the others, at any version"
        assert not any(requirement.specifier.contains(version) for requirement in found), (name, version)


def test_the_pinned_versions_are_ones_that_are_asked_for():
    wrong = [
        (str(requirement), PINNED[requirement.name.lower()])
        for requirement in ASKED
        if requirement.name.lower() in PINNED and not requirement.specifier.contains(PINNED[requirement.name.lower()])
    ]
    assert wrong == []
