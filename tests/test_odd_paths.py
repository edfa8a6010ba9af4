"""Names that no one thought of, and links that lead in circles: packed, trained on, predicted, or refused by name."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY, flags
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.pack import main as pack
from train import main

CLASSES = ["two words", 'it\'s "quoted"', "new\nline", "猫 é", "-dash", "=cmd|' !A0", "$(touch run)", "a,b;c", "%s {0}"]
CLASSES += [
    "<script>alert(1)",
    "**bold** [x](http:y)",
    "{a,b}",
    "back\\slash",
    "tab\there",
    "*",
    " lead",
    "#",
    "x" * 250,
]
FILES = ['it\'s "q"', "new\nline", "-x", "ü", "{1,2}", "y" * 250]


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


def image(path: Path | bytes) -> None:
    """An image under that name, different from all others."""
    path = Path(os.fsdecode(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(list(os.fsencode(path)))
    Image.fromarray(draw.integers(0, 255, (40, 44, 3), dtype=np.uint8)).save(path, "PNG")


def keys() -> list[str]:
    return sorted(key for shard in json.loads(Path("out/index.json").read_text())["shards"] for key in shard["keys"])


@pytest.mark.long
def test_odd_names_go_all_the_way(recwarn: pytest.WarningsRecorder) -> None:
    for folder in CLASSES:
        for name in FILES:
            image(Path("src", folder, f"{name}.png"))
    pack(["src", "out"])
    assert keys() == sorted(f"{folder}/{name}" for folder in CLASSES for name in FILES)
    run_dir = '-a "run" of 猫\nand <b>'
    given = {"run_dir": run_dir, "data.train_shards": "out", "data.val_shards": "out", "data.num_classes": len(CLASSES)}
    given |= {"data.loader.batch_size": 20, "data.resolutions": "[32]", "data.scans": "[random]"}
    main(["fit", *flags(TINY | given | {"figures.every": 1})])
    checkpoint = f"{run_dir}/checkpoints/last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["classes"] == sorted(CLASSES)
    images = [f"src/{folder}/{FILES[0]}.png" for folder in CLASSES]
    main(["predict", f"--ckpt_path={checkpoint}", "--run_dir=out", "--pictures", "--data.images", *images])
    lines = [json.loads(line) for line in Path("out/predictions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [line["path"] for line in lines] == images
    assert all(Path("out", line["picture"]).stat().st_size for line in lines)
    # only folders of the run's own: no name was taken for a command or a path
    assert sorted(os.listdir()) == sorted([run_dir, "out", "src"])
    # TensorBoard shows text as Markdown: every line of the config is verbatim, as four blanks say
    events = EventAccumulator(run_dir, size_guidance={"tensors": 0}).Reload()
    texts = [event.tensor_proto.string_val for tag in events.Tags()["tensors"] for event in events.Tensors(tag)]
    lines = [line for strings in texts for text in strings for line in text.splitlines()]
    assert any(b"<b>" in line for line in lines)
    assert not any(b"<" in line for line in lines if not line.startswith(b"    "))


def test_names_that_are_not_utf_8_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    image(b"src/a/x\xff.png")
    image(b"src/b/y.png")
    with pytest.raises(SystemExit) as stop:
        pack(["src", "out"])
    assert stop.value.code == r"error: the path 'a/x\udcff.png' is not UTF-8: rename the file"


def test_links_that_lead_in_circles_are_entered_once() -> None:
    image(Path("src/a/one.png"))
    image(Path("src/a/below/two.png"))
    image(Path("src/b/three.png"))
    image(Path("elsewhere/four.png"))
    for name, target in {"a/below/up": "..", "a/b": "../../src/b", "b/a": "../../src/a", "b/there": "../../elsewhere",
                         "b/nothing": "nothing", "b/.hidden": "nowhere"}.items():  # fmt: skip
        Path("src", name).symlink_to(target)
    pack(["src", "out"])
    # each class folder by every way into it that does not go through itself
    by_a = ["a/below/two", "a/one", "a/b/three", "a/b/there/four"]
    by_b = ["b/a/below/two", "b/a/one", "b/three", "b/there/four"]
    assert keys() == sorted(by_a + by_b)


@pytest.mark.parametrize("target", ["x.png", "nowhere"])
def test_a_picture_that_is_a_link_to_nothing_is_named(target: str) -> None:
    image(Path("src/a/one.png"))
    Path("src/a/x.png").symlink_to(target)
    with pytest.raises(SystemExit, match=r"^error: src/a/x.png cannot be read \(.*\): repair or remove it$"):
        pack(["src", "out"])


def test_a_path_that_is_too_long_is_a_sentence() -> None:
    with pytest.raises(SystemExit, match="File name too long"):
        pack([f"{'x' * 300}", "out"])
    with pytest.raises(SystemExit, match=r"cannot be made \(File name too long\): choose another --run_dir"):
        main(["fit", *flags(TINY), f"--run_dir={'x' * 300}"])


def test_exif_as_large_as_it_can_be(capsys: pytest.CaptureFixture[str]) -> None:
    """A JPEG with 64 kB of EXIF, and one with 40 segments of 64 kB before the picture."""
    image(Path("src/a/plain.png"))
    exif = Image.Exif()
    exif[0x010E] = "x" * 65_000  # the description
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.open("src/a/plain.png").save("src/a/one.jpg", exif=exif)
    start, rest = Path("src/a/one.jpg").read_bytes()[:2], Path("src/a/one.jpg").read_bytes()[2:]
    segment = b"\xff\xe1" + (65_535).to_bytes(2, "big") + b"Exif\0\0" + b"x" * 65_527
    Path("src/a/two.jpg").write_bytes(start + segment * 40 + rest)
    pack(["src", "out"])
    assert keys() == ["a/one", "a/plain", "a/two"]
