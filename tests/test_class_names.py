"""Classes go together by name: of training and validation shards, and of a checkpoint."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from commands import NO_PICTURES, TINY, flags
from hypothesis import given
from hypothesis import strategies as st

from datamodules.digits import ensure_digits
from datamodules.shards.classes import differences, relabel
from datamodules.shards.index import Shard, ShardIndex, read_index, write_index
from mambaeye.errors import InputError
from train import main

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SHORT = {
    "trainer.limit_train_batches": 2,
    "trainer.limit_val_batches": 2,
    "training_curves.images": 0,
    "data.resolutions": "[32]",
    "data.scans": "[random]",
}


def index_of(classes: Sequence[str], labels: Sequence[int]) -> ShardIndex:
    columns = [f"k{number}" for number in range(len(labels))], list(labels), [512] * len(labels), [1] * len(labels)
    return ShardIndex(Path("set"), classes, [Shard("s.tar", 10_000, "", *columns)])


@given(st.permutations(NAMES), st.lists(st.integers(0, 9), min_size=1))
def test_the_same_names_in_another_order_keep_their_samples(order: list[str], labels: list[int]) -> None:
    index = index_of(NAMES, labels)
    relabel(index, order, "others")
    assert index.classes == order
    assert [order[label] for label in index.labels] == [NAMES[label] for label in labels]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (["ant", "bee", "dog"], "for it has dog and it lacks cat: give shards of the same classes"),
        (["ant", "bee"], "for it lacks cat: give"),
        (["ant", "bee", "cat", "dog"], "for it has dog: give"),
        (["ant", "cat", "cat"], "for it lacks bee: give"),
        (["a", "b", "c", "d"], r"for it has a, b, c, \.\.\. \(4 in all\) and it lacks ant, bee, cat: give"),
    ],
)
def test_other_names_are_refused_with_the_first_differences(found: list[str], said: str) -> None:
    index = index_of(found, [0])
    with pytest.raises(InputError, match=f"the classes of set are not those of a test, {said}"):
        relabel(index, ["ant", "bee", "cat"], "those of a test")


def test_names_that_are_there_several_times_are_mapped_to_nothing() -> None:
    twice = ["ant", "ant", "bee"]
    index = index_of(twice, [1])
    relabel(index, twice, "the same")
    assert index.labels.tolist() == [1]
    with pytest.raises(InputError, match="some name is there several times"):
        relabel(index, ["ant", "bee", "ant"], "others")
    assert differences(twice, ["ant", "bee", "bee"]) == "some name is there several times"


def write_split(source: Path, dest: Path, classes: Sequence[str], order: Sequence[int]) -> None:
    """Copy shards with other class names, label n becoming order[n]."""
    dest.mkdir(parents=True)
    shards = []
    for shard in read_index(source)["shards"]:
        shutil.copy(source / shard.name, dest)
        labels = np.array(order)[shard.labels].tolist()
        columns = [key.decode() for key in shard.keys], labels, shard.offsets.tolist(), shard.sizes.tolist()
        shards.append(Shard(shard.name, shard.bytes, shard.sha256, *columns))
    write_index(dest, classes, shards)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as named by words: in order, reversed, and with one name that is another."""
    folder = tmp_path_factory.mktemp("named")
    ensure_digits(folder / "digits")
    forward, backward = range(10), range(9, -1, -1)
    for split in ("train", "val"):
        write_split(folder / "digits" / split, folder / "named" / split, NAMES, forward)
        write_split(folder / "digits" / split, folder / "reversed" / split, NAMES[::-1], backward)
        write_split(folder / "digits" / split, folder / "other" / split, [*NAMES[:9], "neun"], forward)
    return folder


def rows(run_dir: str) -> list[dict]:
    return json.loads((Path(run_dir) / "validation.json").read_text())["rows"]


def shards(places: Path, train: str, val: str) -> list[str]:
    return flags({"data.train_shards": places / train / "train", "data.val_shards": places / val / "val"})


@pytest.mark.long
def test_runs_on_shards_in_another_order_of_classes_are_the_same(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation against training, a validation against the checkpoint, and a run that goes on."""
    monkeypatch.chdir(tmp_path)
    few = [*flags(TINY | SHORT)]
    for name, others in {"same": "named", "mixed": "reversed"}.items():
        main(["fit", *few, f"--run_dir={name}", *shards(places, "named", others)])
        main(["fit", *few, f"--run_dir={name}", *shards(places, others, others), "--ckpt_path=last",
              "--trainer.max_epochs=2"])  # fmt: skip
    expected = rows("same")
    assert rows("mixed") == expected
    again = ["--run_dir=same", "--ckpt_path=last", "--trainer.limit_val_batches=2", *flags(NO_PICTURES)]
    main(["validate", *again, *shards(places, "reversed", "reversed")])
    assert rows("same") == expected


def test_other_classes_neither_validate_a_fit_nor_a_checkpoint_nor_go_on(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = [*flags(TINY | SHORT)]
    said = "for it has neun and it lacks nine: give shards of the same classes"
    with pytest.raises(SystemExit, match=f"the classes of .*other/val are not those that are trained on, {said}"):
        main(["fit", *few, "--run_dir=run", *shards(places, "named", "other")])
    main(["fit", *few, "--run_dir=run", *shards(places, "named", "named")])
    for command in ("fit", "validate"):
        with pytest.raises(SystemExit, match=f"the classes of .* are not those of the checkpoint, {said}"):
            main([command, "--run_dir=run", *shards(places, "other", "other"), "--ckpt_path=last"])
