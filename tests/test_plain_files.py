"""Files that somebody else wrote: whatever is in them, they load or are refused, and nothing runs."""

import gzip
import io
import pickle
import random
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

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


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(tmp_path: Path) -> None:
    """In tensors, the pickle, the headers, the padding and the table of contents: a bit of every byte."""
    found, flips = 0, random.Random(0)
    for place in range(len(WHOLE[0])):
        content = bytearray(WHOLE[0])
        content[place] ^= 1 << flips.randrange(8)
        (tmp_path / "file.pt").write_bytes(content)
        try:
            loaded = load_plain(tmp_path / "file.pt")
        except UnreadableError:
            found += 1
            continue
        assert str(loaded) == str(CONTENT), f"byte {place}"
    assert found > len(WHOLE[0]) / 3


def test_a_flip_in_a_tensor_is_found_though_torch_takes_it(tmp_path: Path) -> None:
    """Mapped or read; the bytes of the first tensor are those of six floats."""
    place = WHOLE[0].index(torch.arange(6.0).numpy().tobytes())
    content = bytearray(WHOLE[0])
    content[place + 7] ^= 64
    (tmp_path / "file.pt").write_bytes(content)
    torch.load(tmp_path / "file.pt", weights_only=True)
    for mmap in (False, True):
        with pytest.raises(UnreadableError, match="^its archive/data/0 is not as it was written$"):
            load_plain(tmp_path / "file.pt", mmap=mmap)


def test_a_few_bytes_are_not_spread_out(tmp_path: Path) -> None:
    """By strides of zero, by compression, or as the same values many times; two names for one tensor are fine."""
    tied = torch.ones(1000)
    torch.save({"embedding": tied, "head": tied}, tmp_path / "file.pt")
    load_plain(tmp_path / "file.pt")
    cyclic: list[object] = [tied]
    cyclic.append(cyclic)
    for evil in (torch.ones(1).expand(10**6, 10**6), [tied] * 1 + [tied.view(-1) for _ in range(9)]):
        torch.save({"a": evil, "b": cyclic}, tmp_path / "file.pt")
        with pytest.raises(UnreadableError, match="^its tensors are larger than what it holds of them$"):
            load_plain(tmp_path / "file.pt")
    for empty in (torch.empty(10**12, device="meta"), torch.eye(3).to_sparse()):
        torch.save({"a": empty}, tmp_path / "file.pt")
        with pytest.raises(UnreadableError, match="^a tensor in it is sparse or has no values$"):
            load_plain(tmp_path / "file.pt")
    with ZipFile(io.BytesIO(WHOLE[0])) as stored, ZipFile(tmp_path / "file.pt", "w", ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(UnreadableError, match="^its records are compressed"):
        load_plain(tmp_path / "file.pt")


def others(folder: Path) -> dict[str, Path]:
    """Files that other programs write, by what a message calls them."""
    numpy.save(folder / "a.npy", numpy.ones(3))
    numpy.savez(folder / "a.npz", a=numpy.ones(3))
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / "script.pt")
    save_file({"a": torch.ones(3)}, folder / "safetensors.pt")
    contents = {
        "notes.txt": b"the weights are elsewhere\n",
        "model.h5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "model.gguf": b"GGUF\x03\x00" + bytes(100),
        "pointer.pt": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "weights.pt.gz": gzip.compress(b"weights"),
        "image.png": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "model.onnx": b"\x08\x08\x12\x07pytorch\x1a\x052.6.0:" + bytes(100),
        "sklearn.pkl": pickle.dumps(numpy.random.default_rng(0)),
        "nothing.pt": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {
        "a NumPy array": folder / "a.npy",
        "a zip archive of something else": folder / "a.npz",
        "a TorchScript program": folder / "script.pt",
        "a safetensors file: its name must end in .safetensors": folder / "safetensors.pt",
        "text": folder / "notes.txt",
        "an HDF5 file, such as Keras writes": folder / "model.h5",
        "a GGUF file": folder / "model.gguf",
        "a pointer of Git LFS, not the file itself": folder / "pointer.pt",
        "compressed by gzip": folder / "weights.pt.gz",
        "a PNG image": folder / "image.png",
        "empty": folder / "nothing.pt",
    }


@pytest.mark.filterwarnings("ignore:.torch.jit.*:DeprecationWarning", "ignore:.*TorchScript", "ignore:Detected pickle")
def test_a_file_of_another_program_is_said_to_be_that(tmp_path: Path) -> None:
    for kind, path in others(tmp_path).items():
        with pytest.raises(UnreadableError, match=f"^it is {kind}$"):
            load_plain(path)
    for name in ("model.onnx", "sklearn.pkl"):
        with pytest.raises(UnreadableError, match="^it holds something else than tensors and plain containers"):
            load_plain(tmp_path / name)


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
