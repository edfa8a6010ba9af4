import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mambaeye.encoder import EncoderConfig, MambaEye
from mambaeye.errors import InputError
from mambaeye.weights import init_from, load_published

GOLDEN = torch.load(Path(__file__).with_name("authors_model_small.pt"), weights_only=True)


@pytest.mark.parametrize("as_file", [False, True])
def test_the_authors_logits(as_file: bool, tmp_path: Path) -> None:
    source = GOLDEN["state_dict"]
    if as_file:
        source = tmp_path / "mambaeye_tiny.pt"
        torch.save(GOLDEN["state_dict"], source)
    model = load_published(source)
    assert model.config == EncoderConfig(**GOLDEN["config"])
    with torch.no_grad():
        logits = model(GOLDEN["patches"], GOLDEN["positions"])
    torch.testing.assert_close(logits, GOLDEN["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["published", "checkpoint"])
def test_start_from_weights(kind: str, tmp_path: Path) -> None:
    expected, path = load_published(GOLDEN["state_dict"]), tmp_path / "weights.pt"
    ours = {f"encoder.{name}": tensor for name, tensor in expected.state_dict().items()}
    torch.save(GOLDEN["state_dict"] if kind == "published" else {"state_dict": ours, "epoch": 3}, path)
    model = MambaEye(expected.config)
    init_from(model, path)
    for name, tensor in model.state_dict().items():
        assert tensor.equal(expected.state_dict()[name]), name
    other = MambaEye(replace(expected.config, num_classes=7))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(InputError, match=r"head.weight is \(10, 64\), not \(7, 64\)"):
        init_from(other, path)
    assert all(tensor.equal(before[name]) for name, tensor in other.state_dict().items())


def test_a_state_dict_that_does_not_fit_says_where() -> None:
    state = dict(GOLDEN["state_dict"])
    state["mamba2_net.layers.1.norm.weight"] = torch.zeros(3)
    del state["mamba2_net.layers.1.mixer.D"]
    with pytest.raises(InputError, match=r"blocks.1.mixer.D is missing; blocks.1.norm.weight is \(3,\), not \(64,\)"):
        load_published(state)
    with pytest.raises(InputError, match="has a key 'fc.weight' that no published MambaEye has"):
        load_published({"fc.weight": torch.zeros(3)})
    with pytest.raises(InputError, match="is not a MambaEye: 'projection.weight' is missing"):
        load_published({})


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("executed"),))


def test_files_that_are_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load_published("nowhere.pt")
    Path("evil.pt").write_bytes(pickle.dumps({"a": Evil()}))
    torch.save({"a": Evil()}, "evil_zip.pt")
    torch.save(GOLDEN["state_dict"], "whole.pt")
    Path("truncated.pt").write_bytes(Path("whole.pt").read_bytes()[:100_000])
    Path("empty.pt").touch()
    for name in ("evil.pt", "evil_zip.pt", "truncated.pt", "empty.pt"):
        with pytest.raises(InputError, match=f"{name} is not a file of plain tensors"):
            load_published(name)
    torch.save([1, 2], "list.pt")
    with pytest.raises(InputError, match="not a plain state dict"):
        load_published("list.pt")
    assert not Path("executed").exists()
