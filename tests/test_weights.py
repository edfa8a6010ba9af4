import json
import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mambaeye.encoders.mambaeye import EncoderConfig, MambaEye
from mambaeye.errors import InputError
from mambaeye.weights import init_from, load, load_published, save
from train import main

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


def saved_as(kind: str, model: MambaEye, folder: Path) -> Path:
    """The weights of the authors' model in a file of that kind."""
    path = folder / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "published":
        torch.save(GOLDEN["state_dict"], path)
    elif kind == "checkpoint":
        torch.save({"state_dict": {f"encoder.{k}": v for k, v in model.state_dict().items()}, "epoch": 3}, path)
    else:
        save_file(model.state_dict(), path)
    return path


KINDS = ["published", "checkpoint", "safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_start_from_weights(kind: str, tmp_path: Path) -> None:
    expected = load_published(GOLDEN["state_dict"])
    path = saved_as(kind, expected, tmp_path)
    model = MambaEye(expected.config)
    init_from(model, path)
    for name, tensor in model.state_dict().items():
        assert tensor.equal(expected.state_dict()[name]), name
    other = MambaEye(replace(expected.config, num_classes=7))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(InputError, match="has 10 classes and the model 7: .* a new head with --model.new_head true$"):
        init_from(other, path)
    assert all(tensor.equal(before[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_classes", [7, 10])
def test_start_with_a_new_head(kind: str, num_classes: int, tmp_path: Path) -> None:
    expected = load_published(GOLDEN["state_dict"])
    model = MambaEye(replace(expected.config, num_classes=num_classes))
    head = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    init_from(model, saved_as(kind, expected, tmp_path), new_head=True)
    for name, tensor in model.state_dict().items():
        wanted = head[name[5:]] if name.startswith("head.") else expected.state_dict()[name]
        assert tensor.equal(wanted), name


@pytest.mark.parametrize("kind", ["checkpoint", "safetensors", "folder", "run"])
def test_start_from_weights_whose_shapes_others_have_too(kind: str, data_dir: Path, tmp_path: Path) -> None:
    """The projection of patches of 16 and moves in 64 values is as wide as one that is guessed with the usual 256."""
    sizes = {"dim": 16, "depth": 1, "d_state": 4, "headdim": 8, "move_embedding_dim": 64}
    model, other = MambaEye(num_classes=10, **sizes), MambaEye(num_classes=10, **sizes)
    if kind == "folder":
        save(model, tmp_path)
        path = tmp_path / "model.safetensors"
    elif kind == "run":
        where = f"--data.data_dir={data_dir} --run_dir={tmp_path}/run --trainer.max_steps=1 --trainer.logger=false"
        told = " ".join(f"--model.encoder.{name}={value}" for name, value in sizes.items())
        main(["fit", *f"{where} {told} --trainer.accelerator=cpu --trainer.limit_val_batches=0".split()])
        path = tmp_path / "run/checkpoints/last.ckpt"
        model = load(path)
    else:
        path = saved_as(kind, model, tmp_path)
    init_from(other, path)
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in other.state_dict().items())
    if kind in ("folder", "run"):
        same_shapes = MambaEye(num_classes=10, **sizes | {"patch_size": 12, "move_embedding_dim": 232})
        with pytest.raises(InputError, match="has .*64.*, the config .*232.*: leave that out, for weights bring"):
            init_from(same_shapes, path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_saved_and_loaded_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    config = EncoderConfig(num_classes=3, patch_size=4, dim=16, depth=2, d_state=8, headdim=8, axes=3)
    model = MambaEye(config).to(dtype)
    save(model, tmp_path / "new" / "folder")
    again = load(tmp_path / "new" / "folder")
    assert again.config == config
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == dtype
        assert tensor.equal(model.state_dict()[name]), name
    save(MambaEye(replace(config, coordinates="positions")), tmp_path / "new" / "folder")  # over what is there
    assert load(tmp_path / "new" / "folder").config.coordinates == "positions"
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"model.safetensors", "config.json"}


def write_sizes(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"init_args": content["init_args"] | changes}))


def test_sizes_from_before_there_were_coordinates_are_those_of_moves(tmp_path: Path) -> None:
    save(MambaEye(EncoderConfig(num_classes=3, patch_size=4, dim=16, depth=1, headdim=8)), tmp_path)
    sizes = json.loads((tmp_path / "config.json").read_text())["init_args"]
    assert sizes.pop("coordinates") == "moves"
    (tmp_path / "config.json").write_text(json.dumps(sizes))  # as version 0.1 wrote it: the sizes alone
    assert load(tmp_path).config.coordinates == "moves"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json does not exist: give a folder that"),
        (lambda f: (f / "config.json").write_text("{"), "does not hold an encoder's sizes"),
        (lambda f: (f / "config.json").write_text("[1]"), "does not hold an encoder's sizes"),
        (lambda f: write_sizes(f, colour=3), "does not hold an encoder's sizes: .*colour"),
        (lambda f: write_sizes(f, dim="wide"), "does not hold an encoder's sizes"),
        (lambda f: write_sizes(f, coordinates="angles"), "'angles': choose one of moves, positions"),
        (lambda f: write_sizes(f, num_classes=5), r"head.weight is \(3, 16\), not \(5, 16\)"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors does not exist"),
        (lambda f: os.truncate(f / "model.safetensors", 5000), "model.safetensors is not a file of plain tensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is not a file of plain tensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "not a file of plain tensors"),
    ],
)
def test_damaged_folders_are_refused(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    save(MambaEye(EncoderConfig(num_classes=3, patch_size=4, dim=16, depth=2, d_state=8, headdim=8)), tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_a_flipped_bit_in_exported_weights_is_found_or_changes_nothing(tmp_path: Path) -> None:
    """A bit of every byte of the header, and of every hundredth of the tensors; others read the file as before."""
    model = MambaEye(EncoderConfig(num_classes=3, patch_size=2, dim=4, depth=1, d_state=2, headdim=4))
    save(model.to(torch.bfloat16), tmp_path)
    path, flips = tmp_path / "model.safetensors", random.Random(0)
    written = path.read_bytes()
    assert load_file(path).keys() == model.state_dict().keys()
    header = 8 + int.from_bytes(written[:8], "little")
    for place in [*range(header), *range(header, len(written), 100)]:
        content = bytearray(written)
        content[place] ^= 1 << flips.randrange(8)
        path.write_bytes(content)
        try:
            again = load(tmp_path)
        except InputError:
            continue
        assert place < header  # white space, the checksum's name
        for name, tensor in again.state_dict().items():
            assert tensor.equal(model.state_dict()[name])


def test_weights_of_others_have_no_checksum_and_load(tmp_path: Path) -> None:
    model = MambaEye(EncoderConfig(num_classes=3, patch_size=2, dim=4, depth=1, d_state=2, headdim=4))
    save(model, tmp_path)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert load(tmp_path).head.weight.equal(model.head.weight)


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as one file needs."""

    file = b""

    def do_GET(self) -> None:
        found = self.path == "/someone/eye/resolve/main/folder/weights.pt"
        self.send_response(200 if found else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", '"1"')
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(self.file) if found else 0))
        self.end_headers()
        if found and self.command == "GET":
            self.wfile.write(self.file)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.long
def test_start_from_the_hugging_face_hub(tmp_path: Path) -> None:
    """The real client, in a process of its own, fetches from a server here; then from its cache, with no server."""
    Hub.file = saved_as("published", load_published(GOLDEN["state_dict"]), tmp_path).read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {"HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    program = """
from mambaeye.encoders.mambaeye import EncoderConfig, MambaEye
from mambaeye.errors import InputError
from mambaeye.weights import download, init_from, load_published
address = "hf://someone/eye/folder/weights.pt"
expected = load_published(download(address)).state_dict()
model = MambaEye(load_published(download(address)).config)
init_from(model, address)
assert all(tensor.equal(expected[name]) for name, tensor in model.state_dict().items())
for wrong in ("hf://someone/eye/other.pt", "hf://eye/weights.pt"):
    try:
        init_from(model, wrong)
    except InputError as error:
        print(error)
"""
    for offline in ("0", "1"):
        result = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | settings | {"HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        missing, malformed = result.stdout.splitlines()
        assert "hf://someone/eye/other.pt cannot be had: " in missing
        assert "hf://eye/weights.pt is not of the form hf://OWNER/REPOSITORY[@REVISION]/FILE" in malformed
        if offline == "0":
            server.shutdown()
            server.server_close()


def test_a_state_dict_that_does_not_fit_says_where() -> None:
    state = dict(GOLDEN["state_dict"])
    state["mamba2_net.layers.1.norm.weight"] = torch.zeros(3)
    del state["mamba2_net.layers.1.mixer.D"]
    with pytest.raises(InputError, match=r"blocks.1.mixer.D is missing; blocks.1.norm.weight is \(3,\), not \(64,\)"):
        load_published(state)
    with pytest.raises(InputError, match="does not fit this encoder: fc.weight is unknown$"):
        load_published(GOLDEN["state_dict"] | {"fc.weight": torch.zeros(3)})
    with pytest.raises(InputError, match="its shapes do not belong together"):
        load_published(GOLDEN["state_dict"] | {"classification_head.0.weight": torch.zeros(3)})
    with pytest.raises(InputError, match="its shapes do not belong together .*there is a block 9999 in 24 tensors"):
        load_published(GOLDEN["state_dict"] | {"mamba2_net.layers.9999.norm.weight": torch.zeros(64)})
    with pytest.raises(InputError, match="is not a MambaEye: 'head.weight' is missing$"):
        load_published({"init_fc.0.weight": torch.zeros(3, 3)})
    for other in ({}, {"fc.weight": torch.zeros(3)}):
        with pytest.raises(InputError, match="has the layout of no published system that is known here"):
            load_published(other)


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
    torch.save({3: torch.zeros(2)}, "numbered.pt")
    for name in ("list.pt", "numbered.pt"):
        with pytest.raises(InputError, match="not a plain state dict"):
            load_published(name)
    assert not Path("executed").exists()
