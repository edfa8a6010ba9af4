"""train.py export: files that do what torch does, and are not there if they do not."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exports import CHUNK, needs_torch
from torch import Tensor

import mambaeye
from mambaeye.checkpoints import MODEL
from mambaeye.encoders.base import CausalEncoder
from mambaeye.encoders.glimpse_vit import GlimpseViT
from mambaeye.encoders.hnet import HNet
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.encoders.vit import ViT
from mambaeye.errors import InputError
from mambaeye.exporting import checking, export
from mambaeye.exporting.graphs import stream_graph
from mambaeye.exporting.narrow import round_matrices, store_narrow
from mambaeye.exporting.onnx_files import write_onnx
from mambaeye.exporting.trained import read_trained, require_exportable
from mambaeye.geometry.coverage import Coverage
from mambaeye.policies.base import Observation
from mambaeye.temperature import TEMPERATURE
from train import main

pytestmark = needs_torch
State = dict[str, np.ndarray]


def silent(line: str) -> None:
    """Take a line, and say nothing."""


def told(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "export.json").read_text())
    return content


def initial(folder: Path, images: int) -> State:
    return {
        f"state_{part['name']}": np.zeros((images, *part["shape"]), part["dtype"]) for part in told(folder)["state"]
    }


def glimpses(images: int, count: int, side: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(images)
    patches = torch.randint(256, (images, count, 3, side, side), dtype=torch.uint8, generator=generator)
    return patches, torch.randint(300, (images, count, 2), generator=generator)


@pytest.mark.long
@pytest.mark.parametrize("images", [1, 4])
def test_steps_and_chunks_in_any_order_answer_as_the_whole_sequence_in_float64(exported: Path, images: int) -> None:
    encoder = mambaeye.load(exported)
    assert isinstance(encoder, MambaEye)
    patches, positions = glimpses(images, 2 * CHUNK + 3)
    with torch.no_grad():
        expected = encoder.double()(patches, positions).numpy()
    step, chunk = (onnxruntime.InferenceSession(exported / name) for name in ("step.onnx", "chunk.onnx"))
    state, at = initial(exported, images), 0
    sizes = {name: value.shape for name, value in state.items()}
    for count in (1, CHUNK, 1, 1, CHUNK):
        some = slice(at, at + count) if count > 1 else at
        inputs = {"patches": patches[:, some].numpy(), "positions": positions[:, some].numpy()}
        logits, _, *carried = (chunk if count > 1 else step).run(None, inputs | state)
        np.testing.assert_allclose(logits, expected[:, some], atol=1e-4)
        state = dict(zip(state, carried, strict=True))
        at += count
        assert {name: value.shape for name, value in state.items()} == sizes
    assert at == patches.shape[1]


@pytest.mark.long
def test_a_policy_values_places_as_it_does_on_a_canvas(small_checkpoint: Path, exported: Path) -> None:
    trained = read_trained(small_checkpoint)
    policy, images, side = trained.policy, 3, 16
    boxes = torch.tensor([[0, 0, 40, 33], [4, 6, 30, 20], [1, 0, 17, 38]])
    generator = torch.Generator().manual_seed(0)
    taken = torch.randint(24, (images, 4, 2), generator=generator)
    coverage = Coverage((40, 40), boxes, side)
    coverage.add(taken)
    seen = Observation(
        step=4,
        features=torch.randn(images, trained.encoder.feature_dim, generator=generator),
        logits=torch.randn(images, 10, generator=generator),
        coverage=coverage,
        positions=taken,
        planned=torch.randint(24, (images, 9, 2), generator=generator),
        seeds=torch.arange(images),
        patch_size=side,
    )
    candidates = policy.candidates(seen, policy.offered)
    with torch.no_grad():
        expected = policy.gains(seen, candidates).numpy()
    inputs = {
        "features": seen.features,
        "logits": seen.logits,
        "glimpses": torch.full((images,), 4),
        "boxes": boxes,
        "last": taken[:, -1],
        "covered": coverage.in_blocks(told(exported)["policy"]["blocks"]),
        "candidates": candidates,
        "new": coverage.new_pixels(candidates),
    }
    session = onnxruntime.InferenceSession(exported / "policy.onnx")
    (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.long
def test_a_folder_says_what_it_is(small_checkpoint: Path, exported: Path) -> None:
    manifest = told(exported)
    encoder = mambaeye.load(small_checkpoint)
    assert isinstance(encoder, CausalEncoder)
    assert manifest["classes"] == [str(digit) for digit in range(10)]
    assert manifest["parameters"] == sum(parameter.numel() for parameter in encoder.parameters())
    state = encoder.initial_state(1)
    assert manifest["state_bytes"] == sum(part.nbytes for part in state)
    assert manifest["policy"] == {"candidates": 6, "leads": 5, "hand_over": 0.0, "blocks": 16}
    assert [one["file"] for one in manifest["files"]] == ["step.onnx", "chunk.onnx", "policy.onnx"]
    for one in manifest["files"]:
        assert one["difference"] <= 1e-4
        assert one["bytes"] == (exported / one["file"]).stat().st_size
        onnx.checker.check_model(exported / one["file"], full_check=True)
    assert encoder.state_dict().keys() == mambaeye.load(exported).state_dict().keys()


@pytest.mark.long
def test_a_card_has_the_last_validation(small_checkpoint: Path, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    rows = json.loads((small_checkpoint.parents[1] / "validation.json").read_text())["rows"]
    last = [row for row in rows if row["step"] == 9]
    assert len(last) == 4
    for row in last:
        assert re.search(rf"^\| {row['resolution']} px \|.* {100 * row['top1']:.1f}% ", card, re.MULTILINE)
    assert "nothing calibrated it" in card
    assert "| dim | 16 |" in card


@pytest.mark.long
def test_what_a_card_says_to_do_works(exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(exported)
    image = np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)
    exec(code, {"image": image})
    assert capsys.readouterr().out.strip() in told(exported)["classes"]


@pytest.mark.long
def test_no_file_tells_where_it_was_made(small_checkpoint: Path, exported: Path) -> None:
    places = [str(small_checkpoint.parents[1]), os.getcwd(), str(Path(mambaeye.__file__).parent), "site-packages"]
    for path in filter(Path.is_file, exported.rglob("*")):
        content = path.read_bytes()
        assert not [place for place in places if place.encode() in content], path


@pytest.mark.long
def test_what_differs_from_torch_is_not_put_in_place(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "export.json").write_text("an earlier one")
    monkeypatch.setattr(checking, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match=r"step.onnx is not written: its logits differ from torch's by"):
        export(small_checkpoint, output, tell=silent)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (output / "export.json").read_text() == "an earlier one"


def test_a_folder_of_something_else_is_left_alone(small_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"--output .* holds something else than an export: choose another folder"):
        export(small_checkpoint, tmp_path, tell=silent)


@pytest.mark.long
def test_narrow_matrices_do_what_torch_does_with_the_same_in_two_bytes_a_value(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = MambaEye(num_classes=7, dim=64, depth=1, d_state=8, headdim=16).eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    round_matrices(encoder, "bfloat16")
    path = tmp_path / "step.onnx"
    write_onnx(stream_graph(encoder, None), path)
    store_narrow(path, "bfloat16")
    assert checking.check_stream(path, encoder, checking.seen_by_torch(encoder, 1), None) <= 1e-4
    kept = [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.BFLOAT16]
    matrices = {name: value for name, value in before.items() if value.ndim == 2}
    assert sum(np.prod(tensor.dims) for tensor in kept) == sum(value.numel() for value in matrices.values())
    assert path.stat().st_size < 2 * sum(value.numel() for value in matrices.values()) + 60_000  # the graph
    for name, found in encoder.state_dict().items():
        if name not in matrices:
            assert found.equal(before[name]), name
            continue
        assert ((before[name] - found).abs() <= 0.5001 * before[name].abs() / 128 + 1e-9).all(), name
        assert found.equal(found.bfloat16().float()), name


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        (ViT(10, dim=8, depth=1, heads=1), "ViT takes whole canvases"),
        (GlimpseViT(10, dim=8, depth=1, heads=1), "GlimpseViT answers once, after the last glimpse"),
        (MambaEye(num_classes=3, dim=16, depth=1, headdim=8, registers_every=4), "registers_every puts tokens between"),
        (MambaEye(num_classes=3, dim=16, depth=1, headdim=8, axes=3), "positions of this encoder have 3 axes"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_encoder_without_one_step_is_refused_in_a_sentence(encoder: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        require_exportable(encoder)
    assert str(refused.value).count(": ") == 1
    assert "--ckpt_path" in str(refused.value)


@pytest.mark.long
def test_a_step_that_cannot_be_traced_is_refused_in_a_sentence(tmp_path: Path) -> None:
    encoder = HNet(num_classes=3, dim=16, blocks=(1, 1), d_state=8, headdim=8).eval()
    with pytest.raises(InputError, match=r"step.onnx cannot be written, for torch.export cannot trace .* \(Guard\w+\)"):
        write_onnx(stream_graph(require_exportable(encoder), None), tmp_path / "step.onnx")
    assert not list(tmp_path.iterdir())


def changed(small_checkpoint: Path, path: Path, **entries: Any) -> Path:
    content = torch.load(small_checkpoint, weights_only=True)
    torch.save(content | entries, path)
    return path


def test_a_checkpoint_does_not_name_code(small_checkpoint: Path, tmp_path: Path) -> None:
    model = torch.load(small_checkpoint, weights_only=True)[MODEL]
    for class_path, init_args, reason in (
        ("os.system", {}, "is of 'os.system', which is none of the project's own"),
        ("mambaeye.policies.learned.LearnedScan", {"dim": "rm -rf"}, "is damaged: its model.policy.init_args.dim"),
        ("mambaeye.policies.learned.LearnedScan", {"depth": 2}, "does not hold a policy's sizes"),
    ):
        policy = {"class_path": class_path, "init_args": init_args}
        path = changed(small_checkpoint, tmp_path / "other.ckpt", **{MODEL: model | {"policy": policy}})
        with pytest.raises(InputError, match=reason):
            read_trained(path)


def test_a_temperature_is_stated_and_logits_stay_as_they_are(small_checkpoint: Path, tmp_path: Path) -> None:
    saved = {"coefficients": [0.1, -0.2, 0.3, 0.0, 0.0], "sides": [32, 96]}
    path = changed(small_checkpoint, tmp_path / "calibrated.ckpt", **{TEMPERATURE: saved})
    trained = read_trained(path)
    assert trained.temperature is not None
    assert trained.temperature.saved() == saved


@pytest.mark.long
def test_the_command_says_what_it_wrote(
    small_checkpoint: Path,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = shutil.copy(small_checkpoint, tmp_path / "alone.ckpt")
    main(["export", "--ckpt_path", str(path), "--output", "out", "--chunk", "2", "--weights", "bfloat16"])
    lines = capsys.readouterr().out.splitlines()
    for name in ("step", "chunk", "policy"):
        assert any(re.fullmatch(rf"{name}.onnx: [\d.]+ MB, [\d.]+ ms in one thread, .* by \de-\d\d", x) for x in lines)
    assert told(tmp_path / "out")["chunk"] == 2
    assert told(tmp_path / "out")["weights"] == "bfloat16"
    assert "rounded to bfloat16, in model.safetensors too" in (tmp_path / "out/README.md").read_text()
    assert (tmp_path / "out/step.onnx").stat().st_size < (exported / "step.onnx").stat().st_size
    assert "it is not known" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ckpt_path", "none.ckpt", "--output", "out"], "error: --ckpt_path none.ckpt does not exist"),
        (["--ckpt_path", "none.ckpt", "--output", "out", "--chunk", "1"], "--chunk is 1: give a number of glimpses"),
        (["--output", "out"], "error: the following arguments are required: --ckpt_path\nexpected: python train.py"),
    ],
)
def test_a_mistake_ends_in_a_sentence(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["export", *words])
    text = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err
    assert said in text
    assert not list(tmp_path.iterdir())
