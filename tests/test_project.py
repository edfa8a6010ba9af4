"""Facts about the project that are said in more than one place are the same everywhere."""

import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
TESTS = "python -m pytest --numprocesses auto --dist worksteal"


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    rule = re.search(rf"^{target}:.*\n((?:\t.*\n?)*)", makefile, re.MULTILINE)
    assert rule, f"the Makefile has no target {target}"
    return [line.strip() for line in rule[1].splitlines()]


def without_venv(commands: list[str]) -> set[str]:
    return {command.replace("$(BIN)/", "").replace(".venv/bin/", "") for command in commands}


def loaded(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_one_version() -> None:
    version = PROJECT["project"]["version"]
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert loaded("CITATION.cff")["version"] == version
    assert newest
    assert newest[1] == version


def test_one_licence() -> None:
    assert PROJECT["project"]["license"] == loaded("CITATION.cff")["license"] == "Apache-2.0"
    assert PROJECT["project"]["license-files"] == ["LICENSE"]
    lines = [line.strip() for line in (ROOT / "LICENSE").read_text().strip().splitlines()]
    assert lines[:2] == ["Apache License", "Version 2.0, January 2004"]
    numbered = [line.split(".")[0] for line in lines if re.match(r"\d\. [A-Z]", line)]
    assert numbered == [str(number) for number in range(1, 10)]
    appendix = lines[lines.index("END OF TERMS AND CONDITIONS") :]
    assert "APPENDIX: How to apply the Apache License to your work." in appendix
    assert appendix[-1] == "limitations under the License."


def test_the_citation_has_what_the_format_asks_for() -> None:
    citation = loaded("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert all(citation[key] for key in ("message", "title", "authors"))
    (paper,) = citation["references"]
    assert all(paper[key] for key in ("type", "title", "authors"))
    assert "2511.19963" in paper["url"]


@pytest.mark.parametrize(("name", "target"), PROJECT["project"]["scripts"].items())
def test_a_console_script_can_be_called(name: str, target: str) -> None:
    assert callable(EntryPoint(name, target, "console_scripts").load())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
    assert PROJECT["tool"]["setuptools"]["package-data"][package] == ["py.typed"]
    assert package in PROJECT["tool"]["mypy"]["files"]


def test_the_hooks_are_the_checks_of_the_makefile() -> None:
    hooks = [hook for repository in loaded(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    assert not any(hook["pass_filenames"] for hook in hooks)
    checks = without_venv(recipe("test")) - {TESTS}
    assert without_venv([hook["entry"] for hook in hooks]) == checks


def test_the_workflow_runs_what_make_test_runs() -> None:
    jobs = loaded(".github/workflows/tests.yml")["jobs"]
    commands = [step["run"] for job in ("lint", "tests") for step in jobs[job]["steps"] if "run" in step]
    assert without_venv(recipe("test")) <= without_venv(commands)


def test_every_dependency_has_a_lower_bound() -> None:
    """The workflow runs the tests with these versions."""
    project = PROJECT["project"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        assert re.match(r"[\w.-]+(\[[^]]*\])?>=[\w.]+", requirement), requirement
