"""Sixty random faults, each with its number: see faults.py."""

from pathlib import Path

import pytest
from faults import FAULTS, strike_all


@pytest.mark.long
def test_random_faults_change_neither_ledger_nor_weights(tmp_path: Path) -> None:
    assert strike_all(range(FAULTS), tmp_path) == []
