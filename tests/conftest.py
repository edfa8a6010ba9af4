import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: on tensors this small, threads only wait

from functools import cache
from pathlib import Path

import docstring_parser
import hypothesis
import pytest

from datamodules.digits import ensure_digits

hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

# what jsonargparse reads of every class's source, once a process and not once a command line
docstring_parser.parse_from_object = cache(docstring_parser.parse_from_object)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the digits packed into it."""
    folder = tmp_path_factory.mktemp("data")
    ensure_digits(folder / "digits")
    return folder
