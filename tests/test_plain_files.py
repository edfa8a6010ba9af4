"""Files that somebody else wrote: whatever is in them, they load or are refused, and nothing runs."""

import io
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mambaeye.plain_files import UnreadableError, load_plain


def saved(content: object, new: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


CONTENT = {"state_dict": {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int8)}, "step": 3}
WHOLE = [saved(CONTENT, new) for new in (True, False)]


@pytest.mark.parametrize("whole", WHOLE, ids=["zip", "legacy"])
def test_tensors_and_plain_containers_come_back(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(whole)
    loaded = load_plain(tmp_path / "file.pt")
    assert loaded["step"] == 3
    assert loaded["state_dict"]["a.weight"].equal(CONTENT["state_dict"]["a.weight"])


def test_a_file_that_is_not_there_is_not_unreadable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_plain(tmp_path / "nowhere.pt")
    with pytest.raises(UnreadableError, match="^Is a directory$"):
        load_plain(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    whole=st.sampled_from(WHOLE),
    kept=st.floats(0, 1),
    changed=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    noise=st.binary(max_size=64),
    of_noise=st.booleans(),
)
def test_damaged_files_load_or_are_refused(
    whole: bytes, kept: float, changed: list[tuple[float, int]], noise: bytes, of_noise: bool, tmp_path: Path
) -> None:
    content = bytearray(noise if of_noise else whole[: round(kept * len(whole))])
    for place, value in changed:
        if content:
            content[int(place * len(content))] = value
    (tmp_path / "file.pt").write_bytes(content)
    said = "it loads"
    try:
        load_plain(tmp_path / "file.pt")
    except UnreadableError as error:
        said = str(error)
    assert said
    assert "\n" not in said
