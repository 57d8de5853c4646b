"""The set-up and the documents agree with the code: pins with ranges, links with files, commands with make targets."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in found}


def declared() -> list[Requirement]:
    project = PROJECT["project"]
    lines = [
        *PROJECT["build-system"]["requires"],
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    found = [Requirement(line) for line in lines]
    return [requirement for requirement in found if requirement.name != project["name"]]


def test_every_pin_is_exact():
    for pin in pins().values():
        assert [(spec.operator, "*" in spec.version) for spec in pin.specifier] == [
            ("==", False)
        ], pin


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_what_the_project_needs_is_pinned_within_its_range(requirement):
    pin = pins()[canonicalize_name(requirement.name)]
    version = next(iter(pin.specifier)).version
    assert requirement.specifier.contains(version), f"{pin} is outside {requirement}"


def test_continuous_integration_runs_what_everybody_runs():
    script = ROOT / ".ci" / "run"
    commands = [
        line
        for line in script.read_text().splitlines()
        if line and not line.startswith(("#", "set"))
    ]
    assert commands[-1] == "make test"
    assert len(commands) == 2  # the other one finds the repository
    assert script.stat().st_mode & 0o111


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_what_exists(document):
    text = document.read_text()
    links = set(re.findall(r"\]\(([^)#:]+?)\)", text))
    assert {link for link in links if not (document.parent / link).exists()} == set()
    paths = set(re.findall(r"`((?:tests|packaging|benchmarks|docs)/[\w./-]+)`", text))
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)) <= targets
