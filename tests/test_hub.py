"""from_pretrained and push_to_hub, with the hub's own files replaced by folders."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, hub_mixin
from huggingface_hub.errors import HFValidationError

import mambaeye
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError


def small() -> MambaEye:
    torch.manual_seed(0)
    return MambaEye(num_classes=3, dim=16, depth=1, d_state=8, headdim=8, patch_size=4)


class Hub:
    """A hub in a folder: repositories are folders in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[tuple[Any, ...]] = []

    def download(self, repo_id: str, filename: str, revision: str | None = None, **_: object) -> str:
        self.asked.append((repo_id, filename, revision))
        if not (self.root / repo_id).is_dir():
            raise HFValidationError(f"{repo_id} is not there\nand more")
        return str(self.root / repo_id / filename)

    def create_repo(self, repo_id: str, **_: object) -> Any:
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, repo_id: str, folder_path: str, **_: object) -> str:
        shutil.copytree(folder_path, self.root / repo_id)
        return f"https://huggingface.co/{repo_id}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    monkeypatch.setattr(hub_mixin, "hf_hub_download", hub.download)
    monkeypatch.setattr(HfApi, "create_repo", lambda api, **given: hub.create_repo(**given))
    monkeypatch.setattr(HfApi, "upload_folder", lambda api, **given: hub.upload_folder(**given))
    return hub


def test_a_folder_gives_its_encoder_in_evaluation(tmp_path: Path) -> None:
    mambaeye.save(small(), tmp_path)
    found = mambaeye.from_pretrained(tmp_path)
    assert not found.training
    assert all(tensor.equal(found.state_dict()[name]) for name, tensor in small().state_dict().items())


def test_what_was_pushed_comes_back_bit_for_bit(hub: Hub) -> None:
    assert mambaeye.push_to_hub(small(), "somebody/small", private=True) == "https://huggingface.co/somebody/small"
    found = mambaeye.from_pretrained("somebody/small", revision="v1")
    assert found.settings == small().settings
    assert all(tensor.equal(found.state_dict()[name]) for name, tensor in small().state_dict().items())
    assert {("somebody/small", name, "v1") for name in ("config.json", "model.safetensors")} <= set(hub.asked)
    assert "mambaeye" in (hub.root / "somebody/small/README.md").read_text()  # the hub's own card


def test_a_folder_is_pushed_with_all_its_files(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    mambaeye.save(small(), folder)
    for name, text in (("README.md", "our card"), ("step.onnx", "a graph")):
        (folder / name).write_text(text)
    mambaeye.push_to_hub(folder, "somebody/all")
    pushed = {path.name: path.read_bytes() for path in (hub.root / "somebody/all").iterdir()}
    assert pushed == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_mistake_is_a_sentence(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="somebody/none cannot be had from the hub: somebody/none is not there$"):
        mambaeye.from_pretrained("somebody/none")
    for name in ("nowhere", "a/b/c", "./there"):
        with pytest.raises(InputError, match="is no folder, and no name on the hub: give a folder, or"):
            mambaeye.from_pretrained(name)
    with pytest.raises(InputError, match=r"config.json does not exist"):
        mambaeye.push_to_hub(tmp_path, "somebody/empty")
    assert not hub.root.exists()


def test_without_the_client_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="push_to_hub needs the Hugging Face client: pip install huggingface_hub"):
        mambaeye.push_to_hub(small(), "somebody/small")
