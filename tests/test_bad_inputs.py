"""Mistakes of all kinds, a line each: what is typed, and what the one sentence that answers it must say."""

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY, flags
from PIL import Image

from datamodules.check import main as check
from datamodules.pack import main as pack
from mambaeye.weights.__main__ import main as inspect
from train import main

TOOLS: dict[str, Callable[[list[str]], None]] = {"pack": pack, "check": check, "inspect": inspect}
SAMPLE = 20  # of the lines for train.py, every so many run by default; the others with -m long
SHORT = {"trainer.limit_train_batches": 1, "trainer.limit_val_batches": 1, "run_dir": "run"}

# good.ckpt is whole; the files that are not are made below, in `mistakes`
TABLE = r"""
fit --no.such.flag 1 :: no.such.flag
fit --data.num_clases 10 :: data.num_clases
fit --model.encoder.dpeth 3 :: dpeth
fit stray :: stray
fit --config :: config
fit --config missing.yaml :: config
fit --config empty.yaml :: config
fit --config list.yaml :: config
fit --config text.yaml :: config
fit --config broken.yaml :: config
fit --config binary.yaml :: --config binary.yaml is not YAML: repair it, or give another file
fit --config folder :: config
fit --config unknown_key.yaml :: num_clases
fit --config wrong_type.yaml :: --data.num_classes is ten
fit --config tabs.yaml :: config
fit --config twice.yaml :: num_clases
fit --config good.ckpt :: --config good.ckpt is not YAML: repair it, or give another file
fit --ckpt_path missing.ckpt :: --ckpt_path missing.ckpt does not exist
fit --ckpt_path text.ckpt :: --ckpt_path text.ckpt
fit --ckpt_path folder :: --ckpt_path folder
fit --ckpt_path foreign.ckpt :: --ckpt_path foreign.ckpt
fit --data.train_shards 'x-{3..1' --data.val_shards nowhere :: the index ./index.json cannot be read
fit --data.train.canvas '[8,64]' :: data.train.canvas is 8..64 pixels and a glimpse 16: give two sides
fit --data.loader.batch_size 0 :: data.loader.batch_size is 0: give at least 1
fit --trainer.accelerator abacus :: the trainer's arguments cannot be: You selected an invalid accelerator name
fit --trainer.num_nodes 0 :: the trainer's arguments cannot be: `num_nodes` must be a positive integer
fit --model.encoder.d_state 0 :: encoder.d_state is 0: give at least 1
fit --model.init_from text.ckpt :: text.ckpt is not a file of plain tensors
fit --float32_matmul_precision low :: float32_matmul_precision
fit --seed_everything x :: seed_everything
fit --best.monitor :: best.monitor
fit --best.mode best :: `mode` can be min, max but got best
fit --best.monitor val/nothing --best.mode sideways :: `mode` can be min, max but got sideways
fit --last.every_n_train_steps x :: every_n_train_steps
fit --last.every_n_train_steps 2 --last.train_time_interval 1:00:00 :: mutually exclusive
fit --figures.every -1 :: every
fit --film_strip.images -1 :: images
fit --nonfinite.patience x :: patience
fit --preemption.time_limit soon :: time_limit
fit --data.train_scan zigzag :: no scan pattern is called 'zigzag': choose one of random
fit --data.scans '[zigzag]' :: no scan pattern is called 'zigzag': choose one of random, random_grid,
fit --data.scans '[learned]' :: data.scans has learned, and the model has no policy: give --model.policy
fit --data.train_scan '{random: 3, learned: 1}' :: data.train_scan has learned, and the model has no policy
fit --model.policy LearnedScan --model.policy.sees '[labels]' :: model.policy.sees
fit --model.policy LearnedScan --model.policy.candidates 0 :: model.policy.candidates is 0: give a number from 1 to 4096
fit --model.policy LearnedScan --model.policy.hand_over .nan :: model.policy.hand_over is nan: give a drop
fit --model.policy LearnedScan --model.policy.feature_dim 7 :: the policy was built for an encoder of feature_dim 7
fit --model.policy_learning.candidates 0 :: model.policy_learning.candidates is 0: give at least 2
fit --data.patch_size 40 :: data.train.canvas is 32..64 pixels and a glimpse 40: give two sides
fit --data.train.canvas '[64,32]' :: data.train.canvas is 64..32 pixels: give two sides of at least 1, the smaller first
fit --data.train.canvas '[0,0]' :: data.train.canvas is 0..0 pixels: give two sides of at least 1, the smaller first
fit --data.resolutions '[8]' :: data.resolutions has 8, less than a glimpse of 16 pixels
fit --data.resolutions '[]' :: data.resolutions is empty: give at least one
fit --data.scans '[]' :: data.scans is empty: give at least one
fit --data.train.inside_prob 1.5 :: data.train.inside_prob is 1.5: give a probability, 0 to 1
fit --data.train.inside_prob -0.1 :: data.train.inside_prob is -0.1: give a probability, 0 to 1
fit --data.train.num_glimpses 0 :: data.train.num_glimpses is 0: give at least 1
fit --data.evaluate.num_glimpses 0 :: data.evaluate.num_glimpses is 0: give at least 1
fit --data.evaluate.report_at '[0]' :: data.evaluate.report_at has 0: give glimpse counts from 1 to
fit --data.evaluate.report_at '[10]' :: data.evaluate.report_at has 10: give glimpse counts from 1 to
fit --data.loader.batch_size 5000 :: has 1400 samples, less than the 5000 of one optimizer step
fit --data.loader.micro_batch_size 0 :: data.loader.micro_batch_size is 0: give at least 1
fit --data.loader.shuffle_span 0 :: data.loader.shuffle_span is 0: give at least 1
fit --data.loader.max_unreadable -1 :: data.loader.max_unreadable is -1: give at least 0
fit --data.loader.max_pixels 0 :: data.loader.max_pixels is 0: give at least 1
fit --data.loader.timeout -1 :: data.loader.timeout is -1
fit --data.loader.batch_size -3 :: data.loader.batch_size is -3: give at least 1
fit --data.predict.resize 0 :: data.predict.resize is 0: give a canvas side in pixels
fit --data.predict.resize 8 :: data.predict.resize is 8, less than a glimpse of 16 pixels
fit --data.num_classes 7 :: index and data.num_classes is 7: set --data.num_classes 10
fit --data.train_shards nowhere --data.val_shards nowhere :: nowhere does not exist: give a folder of shards, or of
fit --data.train_shards nowhere :: data.train_shards is given and data.val_shards is not,
fit --data.val_shards nowhere :: data.val_shards is given and data.train_shards is not,
fit --model.encoder Nobody :: no encoder is called 'Nobody': choose one of Adventurer,
fit --model.policy Nobody :: no policy is called 'Nobody': choose one of
fit --model.encoder.headdim 7 :: headdim is 7, which does not divide expand * dim = 32
fit --model.encoder.depth 0 :: encoder.depth is 0: give at least 1
fit --model.encoder.dim 0 :: encoder.dim is 0: give at least 1
fit --model.encoder.move_embedding_dim 7 :: encoder.move_embedding_dim is 7: half are sines, so give an even number
fit --model.encoder.d_conv 1 :: encoder.d_conv is 1: a causal convolution needs 2 taps or more
fit --model.optimizer.warmup_epochs -1 :: optimizer.warmup_epochs is -1
fit --model.optimizer.lr 1e300 :: model.optimizer.lr is 1e+300
fit --trainer.accumulate_grad_batches 3 :: trainer.accumulate_grad_batches is 3, but accumulation follows
fit --run_dir held :: held already holds a run: continue it with --ckpt_path last, or choose another --run_dir
fit --run_dir picture.png :: picture.png cannot be made (File exists): choose another --run_dir
validate :: validate has no weights
validate --ckpt_path missing.ckpt :: --ckpt_path missing.ckpt does not exist
validate --ckpt_path empty.ckpt :: --ckpt_path empty.ckpt
validate --ckpt_path text.ckpt :: --ckpt_path text.ckpt
validate --ckpt_path cut.ckpt :: --ckpt_path cut.ckpt
validate --ckpt_path folder :: --ckpt_path folder
validate --ckpt_path foreign.ckpt :: --ckpt_path foreign.ckpt
validate --ckpt_path picture.png :: --ckpt_path picture.png
validate --ckpt_path weights.safetensors :: --ckpt_path weights.safetensors does not exist
validate --ckpt_path '' :: --ckpt_path is empty: give last, or the path of a checkpoint
validate --ckpt_path good.ckpt --model.encoder.depth 0 :: encoder.depth is 0: give at least 1
validate --ckpt_path good.ckpt --data.val_shards folder :: if it holds class folders of pictures
validate --ckpt_path good.ckpt --data.val_shards short_tar :: has 10240 bytes and its index says 409600
validate --ckpt_path good.ckpt --trainer.accelerator abacus :: the trainer's arguments cannot be
validate --model.init_from cut.safetensors :: cut.safetensors is not a file of plain tensors
test :: test has no weights
predict :: predict has no weights
predict --ckpt_path missing.ckpt --data.images picture.png :: --ckpt_path missing.ckpt does not exist
predict --ckpt_path text.ckpt --data.images picture.png :: --ckpt_path text.ckpt
predict --ckpt_path good.ckpt :: predict has no images
predict --ckpt_path good.ckpt --data.images missing.png :: 'missing.png' of --data.images does not exist
predict --ckpt_path good.ckpt --data.images empty_folder :: there is no image in empty_folder
predict --ckpt_path good.ckpt --data.images 'nothing*.png' :: 'nothing*.png' of --data.images matches nothing
predict --ckpt_path good.ckpt --data.images text.png :: none of the 1 file could be
predict --ckpt_path good.ckpt --data.images text.ckpt :: none of the 1 file could be
predict --ckpt_path good.ckpt --data.images empty.png :: none of the 1 file could be
predict --ckpt_path good.ckpt --data.images picture.png --data.predict.resize 0 :: data.predict.resize is 0
predict --ckpt_path good.ckpt --data.images picture.png --data.predict.resize 8 :: data.predict.resize is 8
predict --ckpt_path good.ckpt --data.images picture.png --data.predict.resize x :: resize
predict --ckpt_path good.ckpt --data.images picture.png --model.exit_criteria.value .nan :: value has nan: give a
predict --ckpt_path good.ckpt --data.images picture.png --model.exit_criteria.value soon :: exit_criteria.value
predict --ckpt_path good.ckpt --data.images picture.png --model.exit_criteria.value 0.1 :: value goes by what a
validate --ckpt_path good.ckpt --model.early_exit.value '[0.1,.inf]' :: model.early_exit.value has inf: give a drop in
validate --ckpt_path good.ckpt --model.early_exit.value '[much]' :: early_exit.value
predict --ckpt_path good.ckpt --data.images picture.png --data.loader.max_pixels 10 :: none of the 1 file could be
nonsense :: nonsense
fitt :: fitt
--config text.yaml :: config
pack missing out :: missing does not exist
pack empty_folder out :: empty_folder has no images
pack folder out :: folder has no images
pack picture.png out :: picture.png is damaged or not a tar file
pack text.ckpt out :: text.ckpt is damaged or not a tar file
pack classes classes/out :: classes/out lies in classes, which it is packed from
pack classes folder :: already holds something else: choose a new folder
pack classes out --prefix nothing/ :: classes has no images
pack classes out --classes missing.txt :: --classes missing.txt does not exist
pack classes out --classes empty.txt :: --classes empty.txt is empty
pack classes out --classes picture.png :: --classes picture.png is not text
pack classes out --classes other.txt :: class folder a (2 such) is not in the class list: add it there
pack classes out --classes twice.txt :: --classes twice.txt has a twice: name each class once, the first has label 0
pack classes out --samples_per_shard 0 :: argument --samples_per_shard: 0 is not at least 1
pack classes out --samples_per_shard x :: argument --samples_per_shard: invalid positive value: 'x'
pack classes out --seed -1 :: --seed is -1: give 0 or more
pack classes out --seed x :: argument --seed: invalid int value: 'x'
pack classes out --jobs 0 :: argument --jobs: 0 is not at least 1
pack classes out --max_pixels 0 :: argument --max_pixels: 0 is not at least 1
pack classes out --max_pixels 10 :: 2 of 2 images are unreadable: repair or remove them
pack classes out --unreadable ignore :: argument --unreadable: invalid choice: 'ignore'
pack damaged out :: 1 of 1 images are unreadable: repair or remove them
pack damaged out --unreadable skip :: none of the 1 images is readable: check damaged
pack splits out :: splits holds splits (train, val), not classes: choose one with --prefix train/
pack same_key out :: a/x.jpg and a/x.png would have the same key, a/x: rename one of them
pack loose out :: image x.png lies in no class folder: move it into one, or away
pack classes :: classes has no .tar files to index
pack empty_folder :: empty_folder has no .tar files to index
pack classes --prefix x :: --prefix is for packing images: without DEST, shards are only indexed anew
pack cut.tar.gz out :: cut.tar.gz is damaged or cut short
pack :: the following arguments are required: SOURCE
pack classes out more :: unrecognized arguments: more
pack classes out --nothing :: unrecognized arguments: --nothing
check missing :: missing/index.json does not exist
check folder :: folder/index.json does not exist
check no_json :: no_json/index.json is not an index of shards
check :: the following arguments are required: SHARDS
check missing_tar :: missing_tar/val-000001.tar is missing
check short_tar :: short_tar/val-000001.tar
inspect picture.png more :: unrecognized arguments: more
inspect missing.pt :: does not exist
inspect text.ckpt :: text.ckpt
inspect folder :: folder
inspect picture.png :: picture.png
inspect cut.safetensors :: cut.safetensors
inspect empty.ckpt :: empty.ckpt
inspect cut.ckpt :: cut.ckpt
inspect empty_folder :: empty_folder
inspect foreign.ckpt :: foreign.ckpt
inspect empty.png :: empty.png
inspect binary.yaml :: binary.yaml
inspect hf://nothing :: hf://
"""

LINES = [tuple(part.strip() for part in line.split(" :: ")) for line in TABLE.strip().splitlines()]
OF_TOOLS = [line for line in LINES if line[0].split()[0] in TOOLS]
OF_TRAIN = [line for line in LINES if line not in OF_TOOLS]
QUICK = OF_TOOLS + OF_TRAIN[::SAMPLE]


@pytest.fixture(scope="module")
def mistakes(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of everything that can be wrong with a file."""
    root = tmp_path_factory.mktemp("mistakes")
    with chdir(root), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        main(["fit", *flags({**TINY, **SHORT, "data.data_dir": data_dir, "run_dir": "made"})])
        shutil.copy("made/checkpoints/last.ckpt", "good.ckpt")
        Path("held").mkdir()
        shutil.move("made/checkpoints", "held/checkpoints")
        write_configs()
        write_images()
        for name in ("folder", "empty_folder"):
            Path(name).mkdir()
        good = Path("good.ckpt").read_bytes()
        for name, content in {"cut.ckpt": good[:20_000], "cut.safetensors": good[:99], "empty.ckpt": b""}.items():
            Path(name).write_bytes(content)
        for name in ("folder/notes.txt", "text.ckpt", "text.png"):
            Path(name).write_text("no such thing")
        torch.save({"state_dict": {}}, "foreign.ckpt")
        for name, change in INDICES.items():
            shutil.copytree(data_dir / "digits" / "val", name)
            index = json.loads(Path(name, "index.json").read_text())
            Path(name, "index.json").write_text(json.dumps(change(index, Path(name))))
        Path("no_json/index.json").write_text("{")
    return root


def write_configs() -> None:
    configs = {
        "empty": "",
        "list": "- 1\n- 2",
        "text": "just words",
        "broken": "data: [1, 2",
        "unknown_key": "data:\n  num_clases: 10",
        "wrong_type": "data:\n  num_classes: ten",
        "tabs": "data:\n\tnum_classes: 10",
        "twice": "data:\n  num_classes: 10\ndata:\n  num_clases: 10",
    }
    for name, text in configs.items():
        Path(f"{name}.yaml").write_text(text)
    Path("binary.yaml").write_bytes(bytes(range(256)))


def write_images() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    places = ["picture.png", "classes/a/x.png", "classes/b/x.png", "damaged/a/x.png", "splits/train/a/x.png"]
    places += ["splits/val/a/x.png", "same_key/a/x.png", "same_key/a/x.jpg", "loose/x.png", "loose/a/x.png"]
    for place in map(Path, places):
        place.parent.mkdir(parents=True, exist_ok=True)
        picture.save(place)
    whole = Path("damaged/a/x.png").read_bytes()
    Path("damaged/a/x.png").write_bytes(whole[:60])
    Path("empty.png").touch()
    Path("cut.tar.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\0cut")
    for name, text in {"empty": "", "other": "c\nd", "twice": "a\nb\na"}.items():
        Path(f"{name}.txt").write_text(text)


def changed(index: dict, place: str, value: object) -> dict:
    index["shards"][1][place][3] = value
    return index


def cut(index: dict, folder: Path, size: int) -> dict:
    shard = folder / "val-000001.tar"
    shard.write_bytes(shard.read_bytes()[:size])
    return index


# what becomes of the index of a folder of shards, and of the shards
INDICES = {
    "no_json": lambda index, folder: index,
    "list_json": lambda index, folder: [index],
    "no_shards": lambda index, folder: index | {"shards": []},
    "no_classes": lambda index, folder: {name: value for name, value in index.items() if name != "classes"},
    "wrong_label": lambda index, folder: changed(index, "labels", 10),
    "wrong_offset": lambda index, folder: changed(index, "offsets", 2**40),
    "missing_tar": lambda index, folder: (cut(index, folder, 0) and (folder / "val-000001.tar").unlink()) or index,
    "short_tar": lambda index, folder: cut(index, folder, 10_240),
    "empty_tar": lambda index, folder: cut(index, folder, 0),
}


@pytest.fixture
def here(mistakes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(mistakes)
    monkeypatch.setattr("sys.argv", ["train.py"])
    yield
    for made in ("run", "out", "runs"):
        shutil.rmtree(made, ignore_errors=True)


def answer(words: str, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a failing command says: one sentence with exit code 1, or what follows "error:" where it is 2."""
    command, *arguments = shlex.split(words)
    base: dict[str, object] = SHORT | {"data.data_dir": data_dir, "trainer.accelerator": "cpu"}
    if command == "fit":
        base = TINY | base
    given = flags({name: value for name, value in base.items() if f"--{name}" not in arguments})
    run: Callable[[list[str]], None] = TOOLS.get(command, main)
    if command in ("fit", "validate", "test", "predict"):
        arguments = [command, *given, *arguments]
    elif command == "inspect" or command not in TOOLS:
        arguments = [command, *arguments]
    with pytest.raises(SystemExit) as stop:
        run(arguments)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    if isinstance(stop.value.code, str):  # exit code 1
        assert "\n" not in stop.value.code
        return stop.value.code
    assert stop.value.code in (1, 2)  # 1 of a report on what is damaged
    return said.out if stop.value.code == 1 else said.err.partition("error:")[2]


@pytest.mark.parametrize(("words", "said"), QUICK, ids=str)
def test_some_mistakes_end_in_one_sentence(
    words: str, said: str, here: None, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in answer(words, data_dir, capsys)


@pytest.mark.long
@pytest.mark.parametrize(("words", "said"), [line for line in LINES if line not in QUICK], ids=str)
def test_all_other_mistakes_do_too(
    words: str, said: str, here: None, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in answer(words, data_dir, capsys)


def test_the_table_has_at_least_150_lines_and_none_twice() -> None:
    assert len({words for words, _ in LINES}) == len(LINES) >= 150
    assert all(said for _, said in LINES)
