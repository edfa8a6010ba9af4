"""The config that a run has saved, read back as names and values."""

from pathlib import Path
from typing import Any

import yaml

COMPARED = ("seed_everything", "model", "data", "trainer")  # sections of a config
LEFT_OUT = ("callbacks", "plugins", "logger", "default_root_dir")  # of them: places, and what is the same in every run

Plain = str | int | float | bool


def config_text(run_dir: Path) -> str | None:
    """Return a run's config.yaml; None if there is none."""
    path = run_dir / "config.yaml"
    return path.read_text() if path.exists() else None


def config_values(text: str) -> dict[str, Plain]:
    """Return what is set in a config, by the flags' names without dashes; lists as text."""
    config = yaml.safe_load(text)
    return {
        name: value if isinstance(value, Plain) else str(value)
        for section in COMPARED
        for name, value in leaves(section, config.get(section)).items()
    }


def leaves(name: str, value: Any) -> dict[str, Any]:
    """Return what is not null below an entry, by full names."""
    if isinstance(value, dict):
        inner = ((f"{name}.{key}", value[key]) for key in value if key not in LEFT_OUT)
        return {path: leaf for key, below in inner for path, leaf in leaves(key, below).items()}
    return {} if value is None else {name.replace(".init_args", ""): value}
