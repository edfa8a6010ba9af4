"""The report of python -m mambaeye.weights inspect on files of all kinds, none of which runs code."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mambaeye
from mambaeye.checkpoints import MODEL
from mambaeye.encoders.mambaeye import EncoderConfig, MambaEye
from mambaeye.weights.__main__ import main
from mambaeye.weights.inspection import inspect

AUTHORS = Path(__file__).with_name("authors_model_small.pt")
OLD = Path(__file__).with_name("version_0_1.ckpt")
GOLDEN = torch.load(AUTHORS, weights_only=True)
FITS = "  fits     yes: all of the encoder's tensors, in its shapes, and no other"


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said_of(path: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit code and lines; a readable file leaves nothing on stderr."""
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(path)])
    captured = capsys.readouterr()
    assert captured.err == ""
    return int(stop.value.code), captured.out.splitlines()


def sentence_on(path: object, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what is said of a file that cannot be read, which is one sentence."""
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(path)])
    assert capsys.readouterr().out == ""
    message = str(stop.value.code)  # which Python prints to stderr, and ends with 1
    assert message.startswith("error: ")
    assert "\n" not in message
    assert "weights_only" not in message  # no advice to trust the file
    return message


def small() -> MambaEye:
    return MambaEye(EncoderConfig(num_classes=3, patch_size=4, dim=16, depth=2, d_state=8, headdim=8))


def test_the_authors_weights(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = said_of(AUTHORS, capsys)
    count = sum(tensor.numel() for tensor in GOLDEN["state_dict"].values())
    assert code == 0
    assert lines[0] == f"{AUTHORS}: weights of MambaEye in its authors' layout"
    assert lines[1] == "  encoder  mambaeye.encoders.mambaeye.MambaEye"
    for name, value in GOLDEN["config"].items():
        assert f"{name} {value}" in lines[2]
    assert lines[3] == f"  weights  {count:,} parameters, {len(GOLDEN['state_dict'])} tensors, float32"
    assert lines[4] == "  besides  config, patches, positions, logits"
    assert lines[5:] == [FITS]


@pytest.mark.long
def test_as_a_command_it_warns_of_nothing(tmp_path: Path) -> None:
    torch.save(GOLDEN["state_dict"], tmp_path / "mambaeye_tiny.pt")
    ran = subprocess.run(
        [sys.executable, "-m", "mambaeye.weights", "inspect", "mambaeye_tiny.pt"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert ran.stderr == ""
    assert ran.stdout.splitlines()[-1] == FITS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_that_was_saved(dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    mambaeye.save(small().to(dtype), "exported")
    code, lines = said_of("exported", capsys)
    assert code == 0
    assert lines[0] == "exported: a folder that mambaeye.save wrote"
    assert "dim 16, depth 2" in lines[2]
    assert lines[3].endswith(str(dtype).removeprefix("torch."))
    assert lines[-1] == FITS
    assert said_of("exported/model.safetensors", capsys)[1][1:] == lines[1:]  # its other half lies beside it


def test_a_checkpoint_of_a_run_of_today_and_of_version_0_1(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = said_of(OLD, capsys)
    assert code == 0
    assert lines[0] == f"{OLD}: a checkpoint of a MambaEye run of version 0.1, saved after 6 optimizer steps"
    assert "dim 16, depth 1" in lines[2]
    assert lines[-2:] == ["  besides  the names of 10 classes", FITS]
    checkpoint = mambaeye.checkpoints.read_checkpoint(OLD, "--ckpt_path")
    checkpoint[MODEL]["policy"] = {"class_path": "mambaeye.policies.fixed.FixedScan", "init_args": {}}
    torch.save(checkpoint, "today.ckpt")
    code, today = said_of("today.ckpt", capsys)
    assert code == 0
    assert today[0] == "today.ckpt: a checkpoint of a MambaEye run, saved after 6 optimizer steps"
    assert today[-2] == "  besides  the names of 10 classes, the policy mambaeye.policies.fixed.FixedScan"
    checkpoint[MODEL]["encoder"]["class_path"] = "own_house.OwnEncoder"
    torch.save(checkpoint, "own.ckpt")
    code, own = said_of("own.ckpt", capsys)
    assert code == 1
    assert own[-1].startswith("  fits     no: own.ckpt is of 'own_house.OwnEncoder', which is none of the project's")


def test_what_is_missing_unexpected_or_of_another_shape_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    state = GOLDEN["state_dict"] | {"fc.weight": torch.zeros(3), "scale": torch.tensor(1.0)}
    state["mamba2_net.layers.1.norm.weight"] = torch.zeros(3)
    del state["mamba2_net.layers.1.mixer.D"]
    torch.save(state, "odd.pt")
    code, lines = said_of("odd.pt", capsys)
    assert code == 1
    assert lines[-6:] == [
        "  fits     no: tensors that differ, 4 in all",
        "    tensor                in the file  in the encoder",
        "    blocks.1.mixer.D      missing      (2,)",
        "    fc.weight             (3,)         unexpected",
        "    scale                 ()           unexpected",
        "    blocks.1.norm.weight  (3,)         (64,)",
    ]
    assert inspect("odd.pt").differences[0] == ("blocks.1.mixer.D", None, (2,))


def test_sizes_that_do_not_say_what_the_weights_are(capsys: pytest.CaptureFixture[str]) -> None:
    mambaeye.save(small(), "exported")
    path = Path("exported/config.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"init_args": content["init_args"] | {"num_classes": 5}}))
    code, lines = said_of("exported", capsys)
    assert code == 1
    assert [line.split() for line in lines[-2:]] == [
        ["head.weight", "(3,", "16)", "(5,", "16)"],
        ["head.bias", "(3,)", "(5,)"],
    ]
    path.write_text(json.dumps(content | {"init_args": content["init_args"] | {"colour": 5}}))
    code, lines = said_of("exported", capsys)
    assert code == 1
    assert lines[-1].startswith("  fits     no: exported does not hold an encoder's sizes: ")
    headless = {name: tensor for name, tensor in GOLDEN["state_dict"].items() if "head.0.weight" not in name}
    torch.save(headless, "headless.pt")
    code, lines = said_of("headless.pt", capsys)
    assert code == 1
    assert lines[-1] == "  fits     no: headless.pt is not a MambaEye: 'head.weight' is missing"


def test_tensors_of_something_else(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"fc.weight": torch.zeros(3, 4, dtype=torch.float16), "fc.bias": torch.zeros(3)}, "other.pt")
    other = "15 parameters, 2 tensors, float16 and float32"
    code, lines = said_of("other.pt", capsys)
    assert code == 1
    assert lines[0] == "other.pt: tensors in a layout that is not known here"
    assert lines[1].endswith(other)
    assert lines[2].startswith("  fits     no: nothing in it tells what encoder it is of")


def test_tensors_by_our_names_tell_their_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    save_file(small().state_dict(), "alone.safetensors")
    code, lines = said_of("alone.safetensors", capsys)
    assert code == 0
    assert lines[0] == "alone.safetensors: weights of MambaEye, whose shapes tell its sizes"
    assert "depth" in lines[2]


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("executed"),))


def test_what_cannot_be_read_is_refused_in_a_sentence_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("evil.pt").write_bytes(pickle.dumps({"a": Evil()}))
    Path("old_evil.pt").write_bytes(pickle.dumps({"a": Evil()}, protocol=2))
    torch.save({"a": Evil()}, "evil_zip.pt")
    Path("truncated.pt").write_bytes(AUTHORS.read_bytes()[:100_000])
    Path("empty.pt").touch()
    Path("text.pt").write_text("hello world, this is text\n")
    Path("text.safetensors").write_text("hello world, this is text\n")
    Path("image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    for path in sorted(Path().iterdir()):
        assert f"{path} is not a file of plain tensors (damaged, or not weights): " in sentence_on(path, capsys)
    assert "it asks for" in sentence_on("old_evil.pt", capsys)
    assert "code and is not run" in sentence_on("evil_zip.pt", capsys)
    Path("folder").mkdir()
    assert "folder/config.json does not exist: give a folder that" in sentence_on("folder", capsys)
    assert "nowhere.pt does not exist" in sentence_on("nowhere.pt", capsys)
    torch.save([1, 2], "list.pt")
    assert "list.pt is not a plain state dict of tensors" in sentence_on("list.pt", capsys)
    torch.save({"state_dict": {}, MODEL: 3, "datamodule_hyper_parameters": 3, "global_step": 3}, "no_run.ckpt")
    assert "no_run.ckpt is damaged or not a checkpoint of a MambaEye run: its" in sentence_on("no_run.ckpt", capsys)
    assert not Path("executed").exists()


def test_a_wrong_command_ends_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["inspect"], ["look", "file"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
