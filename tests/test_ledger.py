"""The ledger says what was trained on, through accumulation, resumption and kills."""

import io
import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import ROOT, TINY, flags, ledger, start

from callbacks.ledger import audit, findings
from callbacks.ledger import main as audit_main
from callbacks.run.ledger import SampleLedger
from callbacks.run.ledger_files import BLOCK, cut, end_of_last_line, ledger_paths
from datamodules.shards.index import ShardIndex
from mambaeye.errors import InputError
from train import main

ACCUMULATE, BATCH = 3, 100
TESTS = f"{Path(__file__).parent}{os.pathsep}{ROOT}"
SETTINGS = {
    **TINY,
    "data.loader.batch_size": ACCUMULATE * BATCH,
    "data.loader.micro_batch_size": BATCH,
    "data.resolutions": "[32]",
    "trainer.limit_val_batches": 0,
    "trainer.log_every_n_steps": 1,
}


@pytest.fixture
def fit(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs fit in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    return lambda *arguments: main(["fit", *flags({**SETTINGS, "data.data_dir": data_dir}), *arguments])


LEDGER = ["--trainer.callbacks+=callbacks.run.ledger.SampleLedger"]


def test_every_sample_once_an_epoch_under_the_step_that_it_was_part_of(
    fit: Callable[..., None], data_dir: Path
) -> None:
    fit("--run_dir=run", "--trainer.max_epochs=2", *LEDGER)
    lines = ledger(Path("run"))
    index = ShardIndex.read(data_dir / "digits" / "train")
    everything = {index.key(number) for number in range(len(index))}
    steps = 1400 // (ACCUMULATE * BATCH)
    batches = steps * ACCUMULATE
    assert [(line["epoch"], line["batch"]) for line in lines] == [(e, b) for e in range(2) for b in range(batches)]
    for epoch in range(2):
        keys = [key for line in lines if line["epoch"] == epoch for key in line["keys"]]
        assert set(keys) < everything
        assert len(keys) == len(set(keys)) == batches * BATCH
    assert [line["step"] for line in lines] == [e * steps + b // ACCUMULATE for e in range(2) for b in range(batches)]
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2 * steps


def test_off_unless_asked_for(fit: Callable[..., None]) -> None:
    fit("--run_dir=run", "--trainer.limit_train_batches=1")
    assert not list(Path("run").glob("ledger*"))


@pytest.mark.long
def test_a_continued_run_goes_on_behind_the_lines_that_its_checkpoint_has_seen(fit: Callable[..., None]) -> None:
    kept = ["--trainer.callbacks+=callbacks.run.checkpointing.StepCheckpoint", "--trainer.callbacks.filename={step}"]
    fit(
        "--run_dir=run",
        *LEDGER,
        *kept,
        "--trainer.callbacks.every_n_train_steps=2",
        "--trainer.callbacks.save_top_k=-1",
    )
    path = Path("run/ledger-0.jsonl")
    whole, lines = ledger(Path("run")), path.read_bytes().splitlines(keepends=True)
    resumed = 2 * ACCUMULATE
    path.write_bytes(b"".join(lines[: resumed + 1]) + lines[resumed + 1][:-5])  # as a kill in the next batch leaves it
    fit("--run_dir=run", "--ckpt_path=run/checkpoints/step=2.ckpt", *LEDGER)
    assert ledger(Path("run")) == whole  # losses are exact


@pytest.mark.long
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["--data.loader.micro_batch_size=75"]),
        pytest.param(
            ["--trainer.devices=2", "--data.loader.micro_batch_size=50"],
            ["--trainer.devices=1", "--data.loader.num_workers=2"],
            marks=pytest.mark.long,
        ),
        pytest.param([], ["--trainer.devices=2", "--data.loader.micro_batch_size=30"], marks=pytest.mark.long),
    ],
    ids=["smaller batches", "two ranks, then one", "one rank, then two"],
)
def test_after_a_kill_and_another_layout_every_line_counts(
    before: list[str], after: list[str], data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill comes in the middle of step 4; the checkpoint has seen 2 steps."""
    monkeypatch.chdir(tmp_path)
    settings = {**SETTINGS, "data.data_dir": data_dir, "run_dir": "run", "trainer.max_epochs": 2}
    Path("own.yaml").write_text("seed_everything: 3\n")  # else the run goes on with the kill that its config has
    settings |= {"last.every_n_train_steps": 2, "ckpt_path": "last"}
    arguments = ["fit", "--config=own.yaml", *flags(settings), *LEDGER]
    batches_a_step = 6 if "--trainer.devices=2" in before else ACCUMULATE
    moment = {"moment": "train_batch_start", "count": 3 * ACCUMULATE + 1, "numbers": [int(signal.SIGKILL)], "rank": 0}
    kill = ["--trainer.callbacks+=signals.SendSignal", *flags({f"trainer.callbacks.{k}": moment[k] for k in moment})]
    killed = start([*arguments, *before, *kill], PYTHONPATH=TESTS)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert len([line for rank in ledger_paths("run") for line in ledger(Path("run"), rank)]) > 2 * batches_a_step
    resumed = start([*arguments, *after])
    said, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, said
    lines = [line for rank in ledger_paths("run") for line in ledger(Path("run"), rank)]
    steps = 1400 // (ACCUMULATE * BATCH)
    for epoch in range(2):
        seen = Counter(key for line in lines if line["epoch"] == epoch for key in line["keys"])
        assert set(seen.values()) == {1}
        assert len(seen) == steps * ACCUMULATE * BATCH
    audited = audit(Path("run"))
    assert [(found.once, found.more, found.never, found.state) for found in audited] == 2 * [(1200, 0, 200, "over")]
    assert findings(audited) == []


def write(rank: int, *lines: dict[str, object], run_dir: Path = Path()) -> None:
    """A ledger of an epoch of 10 samples in two batches of 4."""
    usual = {"step": 0, "batches": 2, "samples": 10, "images": 4, "limited": False, "unreadable": [], "loss": 0.5}
    text = "".join(json.dumps(usual | line) + "\n" for line in lines)
    (run_dir / f"ledger-{rank}.jsonl").write_text(text)


FIRST = {"epoch": 0, "batch": 0, "keys": ["a", "b", "c", "d"]}
SECOND = {"epoch": 0, "batch": 1, "keys": ["e", "f", "g", "h"]}
NEXT = {"epoch": 1, "batch": 0, "keys": ["a", "h", "c", "d"]}


@pytest.mark.parametrize(
    ("lines", "counts", "said"),
    [
        ([FIRST], [(4, 0, 6)], []),
        ([FIRST, SECOND], [(8, 0, 2)], []),
        ([FIRST, SECOND, NEXT], [(8, 0, 2), (4, 0, 6)], []),
        ([FIRST, NEXT], [(4, 0, 6), (4, 0, 6)], ["epoch 0: 6 samples were never trained on"]),
        ([FIRST | {"limited": True}, NEXT], [(4, 0, 6), (4, 0, 6)], []),
        ([FIRST, FIRST], [(0, 4, 6)], ["epoch 0: 4 samples were trained on more than once (a, b, c, ...)"]),
        (
            [FIRST, SECOND | {"keys": ["a", "f", "g", "h"]}],
            [(6, 1, 3)],
            ["1 samples were trained on more than once"],
        ),
        ([SECOND], [(4, 0, 6)], ["1 of a rank's batches have no line (0)", "6 samples were never trained on"]),
        ([NEXT], [(4, 0, 6)], ["1 epochs have no line (0)"]),
        ([FIRST | {"keys": ["a"], "unreadable": ["b", "c", "d"]}, SECOND], [(5, 0, 2)], []),
    ],
)
def test_audit(
    lines: list[dict[str, object]],
    counts: list[tuple[int, int, int]],
    said: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(0, *lines, run_dir=tmp_path)
    audits = audit(tmp_path)
    assert [(found.once, found.more, found.never) for found in audits] == counts
    assert len(findings(audits)) == len(said)
    for sentence, part in zip(findings(audits), said, strict=True):
        assert part in sentence
    if said:
        with pytest.raises(SystemExit) as end:
            audit_main([str(tmp_path)])
        assert end.value.code == 1
    else:
        audit_main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert all(sentence in printed for sentence in said)


def test_audit_counts_all_ranks_together_and_no_torn_line(tmp_path: Path) -> None:
    write(0, FIRST, run_dir=tmp_path)
    write(1, SECOND | {"batch": 0}, NEXT | {"epoch": 0, "batch": 1}, run_dir=tmp_path)
    with (tmp_path / "ledger-1.jsonl").open("a") as file:
        file.write('{"epoch": 1, "ba')
    (found,) = audit(tmp_path)
    assert (found.once, found.more, found.never) == (4, 4, 2)
    assert found.repeated == ["a", "c", "d", "h"]


def test_audit_says_what_it_cannot_count(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no ledger-0.jsonl: give the folder of a run"):
        audit(tmp_path)
    (tmp_path / "ledger-0.jsonl").write_text('{"epoch": 0, "step": 0, "batch": 0, "keys": ["a"], "loss": 2.5}\n')
    with pytest.raises(InputError, match="line 1 of .* is damaged, or of a version that wrote less down"):
        audit(tmp_path)


def test_a_ledger_is_cut_to_the_lines_before_a_step(tmp_path: Path) -> None:
    path = tmp_path / "ledger-0.jsonl"
    lines = [
        json.dumps({"step": step, "keys": ["k" * size]}).encode() + b"\n" for step in range(4) for size in (9, BLOCK)
    ]
    for step in range(5):
        for torn in (b"", b"x", b'{"step": 0', b"\0" * BLOCK + b"\n", b"\0\n[]\n{}\n"):
            path.write_bytes(b"".join(lines) + torn)
            cut(path, step)
            assert path.read_bytes() == b"".join(lines[: 2 * step])


def test_a_full_disk_ends_the_run_in_a_sentence(
    fit: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = SampleLedger.on_train_start

    def on_full_disk(self: SampleLedger, *arguments: object) -> None:
        opened(self, *arguments)
        os.dup2(os.open("/dev/full", os.O_WRONLY), self.file.fileno())

    monkeypatch.setattr(SampleLedger, "on_train_start", on_full_disk)
    with pytest.raises(SystemExit, match="error: the ledger run/ledger-0.jsonl cannot be written .No space left on"):
        fit("--run_dir=run", *LEDGER)


@pytest.mark.parametrize("torn", [b"", b"x", b"x" * (BLOCK - 3), b"x" * BLOCK, b"x" * (3 * BLOCK + 1)])
def test_end_of_last_line(torn: bytes) -> None:
    assert end_of_last_line(io.BytesIO(torn), len(torn)) == 0
    assert end_of_last_line(io.BytesIO(b"a\nb\n" + torn), 4 + len(torn)) == 4
