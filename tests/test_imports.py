"""The directions of imports: data flows one way, and so do names."""

import ast
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mambaeye", "datamodules", "callbacks")
FILES = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).glob("*.py")]
KNOW_NO_TRAINING = {
    "batch",
    "diagnosis",
    "encoder",
    "mamba2",
    "kernels",
    "moves",
    "patches",
    "scans",
    "ssd",
    "trajectory",
}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import absolutely"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def below(names: set[str], *packages: str) -> set[str]:
    return {name for name in names if name.split(".")[0] in packages}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_follow_the_house(path: Path) -> None:
    names, package = imported(path), path.parts[0]
    if package == "mambaeye":
        assert not below(names, "datamodules", "callbacks", "train", "webdataset")
        if path.name != "module.py":
            assert not below(names, "lightning")
        if path.name != "kernels.py":
            assert not below(names, "mamba_ssm", "causal_conv1d")
        if path.stem in KNOW_NO_TRAINING:
            training = {"mambaeye.loss", "mambaeye.evaluation.metrics", "mambaeye.optim", "mambaeye.module"}
            assert not names & training
    elif package == "datamodules":
        assert not below(names, "callbacks", "train")
        allowed = {"batch", "trajectory", "scans", "patches", "errors"}
        assert {name.split(".")[1] for name in below(names, "mambaeye") if "." in name} <= allowed
    else:
        assert not below(names, "datamodules", "train")
        assert {name.split(".")[1] for name in below(names, "mambaeye") if "." in name} <= {"errors"}


def test_every_file_is_reached() -> None:
    """The walk above sees what it should: the packages that setuptools installs, and no other."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {init.parent.name for init in ROOT.glob("*/__init__.py")}
    installed = {name for name in packages if any(fnmatch(name, pattern) for pattern in patterns)}
    assert {path.parts[0] for path in FILES} == installed
    assert len(FILES) > 15
