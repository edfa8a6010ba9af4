import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: on tensors this small, threads only wait

from pathlib import Path

import pytest

from datamodules.digits import ensure_digits


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the digits packed into it."""
    folder = tmp_path_factory.mktemp("data")
    ensure_digits(folder / "digits")
    return folder
