"""The command line in full, on the digits, with a model of a few thousand parameters."""

import csv
import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from commands import NO_PICTURES, TINY, flags
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mambaeye import weights
from mambaeye.module import ClassifierModule
from train import main

# with Lightning's rehearsal of a validation, which no report may take for one
DRAWN = {"figures.every": 1, "classes.every": 1, "film_strip.images": 3, "trainer.num_sanity_val_steps": 2}
QUIET = flags(NO_PICTURES)


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs start in an empty directory, and any path of theirs is relative to it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a tiny model trained for one epoch, without a validation."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        main(["fit", f"--run_dir={run_dir}", f"--data.data_dir={data_dir}", *flags(TINY | DRAWN)])
    return run_dir


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the words of a command that must fail, all of it: one sentence."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    if stop.value.code == 2:  # what does not parse: two lines, and nothing else
        said, expected = capsys.readouterr().err.splitlines()
        assert expected.startswith("expected: ")
    else:
        said = str(stop.value)
    assert "Traceback" not in said
    assert "\n" not in said
    return said


def rows(run_dir: Path, name: str = "validation.json") -> list[dict]:
    return json.loads((run_dir / name).read_text())["rows"]


def test_fit_leaves_a_run_directory(trained: Path) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    encoder = checkpoint["hyper_parameters"]["encoder"]
    assert encoder["class_path"] == "mambaeye.encoders.mambaeye.MambaEye"
    assert encoder["init_args"]["num_classes"] == 10
    assert checkpoint["datamodule_hyper_parameters"]["resolutions"] == [32, 40]
    assert checkpoint["global_step"] == 1400 // 64
    assert (trained / "checkpoints" / "best.ckpt").exists()
    assert "dim: 16" in (trained / "config.yaml").read_text()
    expected = [(r, scan, step) for r in (32, 40) for scan in ("random", "row_raster") for step in (1, 2, 4, 8, 9)]
    assert [(row["resolution"], row["scan"], row["step"]) for row in rows(trained)] == expected


QUANTITIES = ("top1", "top5", "confidence", "true_class_probability", "nll", "brier", "ece", "mce", "adaptive_ece")
QUANTITIES += ("information_ratio",)


def test_tensorboard_holds_what_is_promised(trained: Path) -> None:
    """Read back with TensorBoard's own reader, and equal to validation.json and curves.jsonl."""
    events = EventAccumulator(str(trained)).Reload()
    cells = [f"{side}_{scan}" for side in (32, 40) for scan in ("random", "row_raster")]
    scalars = {"train/loss", "train/lr", "train/gradient_norm", "val/top1"}
    scalars |= {f"train_loss_by_glimpse/{name}" for name in ("early", "middle", "late")}
    scalars |= {f"train_confidence_by_information_ratio/{ratio}" for ratio in ("0.0", "0.2", "0.4")}
    rates = ("images_per_second", "glimpses_per_second", "data_wait", "memory_gib", "mfu")
    scalars |= {f"throughput/{name}" for name in rates}
    scalars |= {f"val/{name}/{cell}" for name in QUANTITIES for cell in cells}
    assert scalars <= set(events.Tags()["scalars"])
    figures = ("accuracy_and_confidence", "reliability", "information_ratio", "ece_by_epoch", "token_budgets")
    figures += ("film_strip",)
    classes = {f"figures/confusion/{cell}" for cell in cells}
    assert {f"figures/{name}" for name in figures} | classes == set(events.Tags()["images"])
    assert "custom_scalars__config__" in events.Tags()["tensors"]

    by_glimpse = EventAccumulator(str(trained / "by_glimpse" / "epoch_000")).Reload()
    assert set(by_glimpse.Tags()["scalars"]) == {f"{name}_by_glimpse/{cell}" for name in QUANTITIES for cell in cells}
    for cell in cells:  # of the last validation, all conditions in one chart
        one = EventAccumulator(str(trained / "by_condition" / cell)).Reload()
        for group, name in (("accuracy", "top1"), ("calibration", "confidence"), ("calibration", "ece")):
            values = [(point.step, point.value) for point in one.Scalars(f"{group}/{name}_by_glimpse")]
            expected = by_glimpse.Scalars(f"{name}_by_glimpse/{cell}")
            assert values == [(point.step, point.value) for point in expected]
    records = [json.loads(line) for line in (trained / "curves.jsonl").read_text().splitlines()]
    for record in (record for record in records if record["kind"] == "validation"):
        for name in QUANTITIES:
            points = by_glimpse.Scalars(f"{name}_by_glimpse/{record['resolution']}_{record['scan']}")
            assert [point.step for point in points] == record["steps"] == list(range(1, 10))
            assert [point.value for point in points] == pytest.approx(record[name], abs=1e-6)
    for row in (row for row in rows(trained) if row["step"] == 9):
        (point,) = events.Scalars(f"val/ece/{row['resolution']}_{row['scan']}")
        assert point.value == pytest.approx(row["ece"], rel=1e-6)
    training = [record for record in records if record["kind"] == "training"]
    for name in ("train/loss", "train_loss_by_glimpse/late", "throughput/mfu"):
        values = {point.step + 1: point.value for point in events.Scalars(name)}  # Lightning counts steps from 0
        assert values == {record["optimizer_step"]: pytest.approx(record[name], abs=1e-6) for record in training}


def test_tensorboard_says_what_the_run_was(trained: Path) -> None:
    """The config as text, and its values beside results that the run has logged, under HPARAMS."""
    events = EventAccumulator(str(trained)).Reload()
    (text,) = events.Tensors("config/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert [line[4:] for line in shown.splitlines()] == (trained / "config.yaml").read_text().splitlines()
    content = {
        name: HParamsPluginData.FromString(plugin)
        for name, plugin in events.summary_metadata["_hparams_/experiment"].plugin_data.ListFields()
        if name.name == "content"
    }
    (experiment,) = (data.experiment for data in content.values())
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert {"val/top1", "train/loss", "val/top1/32_random", "val/ece/40_row_raster"} <= metrics
    assert metrics <= set(events.Tags()["scalars"])  # they are taken from there
    given = {info.name for info in experiment.hparam_infos}
    assert {"model.encoder.dim", "model.optimizer.lr", "data.resolutions", "seed_everything"} <= given
    assert "_hparams_/session_end_info" in events.summary_metadata


@pytest.mark.parametrize(
    "wrong",
    [
        "--model.encoder.dim=17",  # before there is a model
        "--data.train_shards=nowhere",  # when the data is opened, and events are
        "--data.loader.batch_size=100000",  # when the optimizer is set up
    ],
)
def test_a_failed_start_leaves_no_run(wrong: str, data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["fit", *QUIET, f"--run_dir={tmp_path}/run", f"--data.data_dir={data_dir}", wrong])
    assert not (tmp_path / "run").exists()


def test_a_directory_that_was_there_stays_when_a_start_fails(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.yaml").touch()
    with pytest.raises(SystemExit):
        main(["fit", *QUIET, f"--run_dir={tmp_path}", f"--data.data_dir={data_dir}", "--data.train_shards=nowhere"])
    assert (tmp_path / "notes.yaml").exists()


@pytest.mark.long
def test_validate_needs_only_the_checkpoint(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes, data and cells come from the checkpoint, and the numbers are those at the end of the fit, every time."""
    before = rows(trained)
    assert all(row["samples"] == 397 for row in before)
    for pictures in (QUIET, []):
        main(["validate", f"--ckpt_path={trained}/checkpoints/last.ckpt", "--trainer.accelerator=cpu", *pictures])
        assert rows(trained) == before
    assert "Top-1 (%) after so many glimpses, 397 images" in capsys.readouterr().out
    for name in ("", "/confidence", "/reliability", "/information_ratio", "/film_strip", "/ece_by_epoch", "/training"):
        assert (trained / f"validation{name}.png").stat().st_size > 10_000
    with (trained / "validation/curves.csv").open() as file:
        table = {(row["resolution"], row["scan"], row["step"]): row for row in csv.DictReader(file)}
    assert len(table) == 2 * 2 * 9
    for row in before:
        line = table[str(row["resolution"]), row["scan"], str(row["step"])]
        assert all(float(line[name]) == pytest.approx(row[name], abs=1e-6) for name in ("samples", *QUANTITIES))
    assert len((trained / "validation/reliability.csv").read_text().splitlines()) == 1 + 2 * 2 * 4 * 16
    assert len((trained / "validation/information_ratio.csv").read_text().splitlines()) == 1 + 2 * 2 * 20
    with (trained / "validation/training.csv").open() as file:
        assert [row["optimizer_step"] for row in csv.DictReader(file)] == ["10", "20"]
    assert (trained / "validate.yaml").exists()
    assert len(list(trained.glob("events.out.tfevents.*"))) == 1  # the fit's: TensorBoard shows one course of steps
    events = EventAccumulator(str(trained / "validation")).Reload()  # validate's own, the second time's alone
    by_glimpse = EventAccumulator(str(trained / "validation/by_glimpse/all")).Reload()
    for row in (row for row in before if row["step"] == 9):
        cell = f"{row['resolution']}_{row['scan']}"
        (point,) = events.Scalars(f"val/top1/{cell}")
        assert point.value == pytest.approx(row["top1"], rel=1e-6)
        assert by_glimpse.Scalars(f"top1_by_glimpse/{cell}")[-1].value == pytest.approx(row["top1"], rel=1e-6)
    assert {f"figures/confusion/{row['resolution']}_{row['scan']}" for row in before} <= set(events.Tags()["images"])


def test_flags_win_over_the_checkpoint(trained: Path) -> None:
    last = f"--ckpt_path={trained}/checkpoints/last.ckpt"
    few = ["--data.loader.batch_size=100", "--trainer.limit_val_batches=1"]
    main(["validate", *QUIET, last, "--run_dir=elsewhere", "--data.resolutions=[56]", *few])
    assert {(row["resolution"], row["scan"]) for row in rows(Path("elsewhere"))} == {(56, "random"), (56, "row_raster")}


@pytest.mark.long
def test_batch_size_and_workers_do_not_change_the_numbers(trained: Path) -> None:
    last = f"--ckpt_path={trained}/checkpoints/last.ckpt"
    main(["validate", *QUIET, last, "--run_dir=other", "--data.loader.batch_size=50", "--data.loader.num_workers=2"])
    for row, expected in zip(rows(Path("other")), rows(trained), strict=True):
        for name in ("samples", *QUANTITIES):
            assert row[name] == pytest.approx(expected[name], abs=1e-6)


def test_test_gives_the_numbers_of_validate(trained: Path) -> None:
    main(["test", *QUIET, f"--ckpt_path={trained}/checkpoints/last.ckpt", "--run_dir=tested"])
    assert rows(Path("tested"), "test.json") == rows(trained)


def test_continue_a_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained, "again")
    arguments = ["fit", "--run_dir=again", "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false"]
    said = fails(arguments, capsys)
    assert said == "error: again already holds a run: continue it with --ckpt_path last, or choose another --run_dir"
    with Path("again/curves.jsonl").open("a") as file:  # what a run that was killed wrote after its checkpoint
        file.write(json.dumps({"kind": "training", "epoch": 1, "optimizer_step": 25}) + "\n" + '{"kind": "tr')
    main([*arguments, *QUIET, "--ckpt_path=last", "--trainer.log_every_n_steps=10"])
    checkpoint = torch.load("again/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 1
    assert checkpoint["global_step"] == 2 * (1400 // 64)
    assert checkpoint["hyper_parameters"]["encoder"]["init_args"]["dim"] == 16  # from the checkpoint: no flag said so
    assert sorted(path.name for path in Path("again/by_glimpse").iterdir()) == ["epoch_000", "epoch_001"]
    records = [json.loads(line) for line in Path("again/curves.jsonl").read_text().splitlines()]
    steps = [record["optimizer_step"] for record in records if record["kind"] == "training"]
    assert steps == [10, 20, 30, 40]
    assert [record["epoch"] for record in records if record["kind"] == "validation"] == [0] * 4 + [1] * 4


def test_last_is_the_last_even_if_the_best_was_earlier(data_dir: Path) -> None:
    settings = {**TINY, "run_dir": "flat", "model.optimizer.lr": 0, "trainer.max_epochs": 3, "data.scans": "[random]"}
    short = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2", "--data.resolutions=[32]"]
    main(["fit", f"--data.data_dir={data_dir}", *flags(settings), *short])
    steps = {
        name: torch.load(f"flat/checkpoints/{name}.ckpt", weights_only=True)["global_step"] for name in ("best", "last")
    }
    assert steps == {"best": 2, "last": 6}
    assert sorted(path.name for path in Path("flat/checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_last_without_a_checkpoint_starts_afresh_in_fit_alone(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=0", f"--data.data_dir={data_dir}"]
    main(["fit", "--ckpt_path=last", *flags(TINY), *short])
    assert "runs/default/checkpoints/last.ckpt does not exist: starting afresh" in capsys.readouterr().out
    said = fails(["validate", "--ckpt_path=last", "--run_dir=nothing"], capsys)
    assert "validate has no weights (nothing/checkpoints/last.ckpt may be some)" in said


def test_two_runs_are_the_same(data_dir: Path) -> None:
    weights = []
    for run_dir, workers in (("a", 0), ("b", 0)):
        settings = {**TINY, "run_dir": run_dir, "data.loader.num_workers": workers, "trainer.limit_val_batches": 0}
        main(["fit", f"--data.data_dir={data_dir}", *flags(settings), "--trainer.limit_train_batches=3"])
        weights.append(torch.load(f"{run_dir}/checkpoints/last.ckpt", weights_only=True)["state_dict"])
    for name, value in weights[0].items():
        assert value.equal(weights[1][name]), name


def test_weights_alone_can_be_validated_and_fine_tuned(
    trained: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = trained / "checkpoints" / "last.ckpt"
    module = ClassifierModule.load_from_checkpoint(last, map_location="cpu")
    weights.save(module.encoder, "exported")
    data = f"--data.data_dir={data_dir}"
    short = ["--trainer.limit_val_batches=2", "--trainer.limit_train_batches=2", "--trainer.max_epochs=1", data]
    for run_dir, source in (("a", "--ckpt_path=" + str(last)), ("b", "--model.init_from=exported/model.safetensors")):
        main(["validate", *QUIET, *flags({**TINY, "run_dir": run_dir}), *short, source])
    assert Path("a/validation.json").read_text() == Path("b/validation.json").read_text()

    fit = ["fit", *flags({**TINY, "run_dir": "c", "model.optimizer.lr": 0}), *short]
    start = ["--model.init_from=exported/model.safetensors", "--model.new_head=true"]
    main([*fit, *start])
    tuned = ClassifierModule.load_from_checkpoint("c/checkpoints/last.ckpt", map_location="cpu").encoder.state_dict()
    same = {name for name, tensor in tuned.items() if tensor.equal(module.encoder.state_dict()[name])}
    assert tuned.keys() - same == {"head.weight", "head.bias"}
    Path("exported/model.safetensors").unlink()
    main([*fit, *start, "--ckpt_path=last", "--trainer.max_epochs=2"])  # the checkpoint has the weights


def test_a_module_loads_from_its_checkpoint(trained: Path) -> None:
    module = ClassifierModule.load_from_checkpoint(trained / "checkpoints" / "last.ckpt", map_location="cpu")
    assert module.encoder.config.dim == 16
    assert module.optimizer_config.warmup_epochs == 0.5


@pytest.mark.long
def test_a_checkpoint_says_what_the_model_is_told_of_where_it_looks(
    trained: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"trainer.limit_train_batches": 2, "trainer.limit_val_batches": 1}
    there = {"run_dir": "there", "data.data_dir": data_dir}
    main(["fit", *flags(TINY | short | there), "--model.encoder.coordinates=positions", "--data.train_scan=hilbert"])
    last = Path("there/checkpoints/last.ckpt")
    assert ClassifierModule.load_from_checkpoint(last).encoder.config.coordinates == "positions"
    before = rows(Path("there"))
    capsys.readouterr()
    again = ["validate", *QUIET, f"--ckpt_path={last}", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=1"]
    main(again)
    assert rows(Path("there")) == before
    assert "not as in the checkpoint" not in capsys.readouterr().out
    main([*again, "--model.encoder.coordinates=moves"])
    assert "  model.encoder.coordinates: positions -> moves\n" in capsys.readouterr().out
    assert rows(Path("there")) != before
    older = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)  # from before there was the choice
    del (
        older["hyper_parameters"]["encoder"]["init_args"]["coordinates"],
        older["datamodule_hyper_parameters"]["train_scan"],
    )
    torch.save(older, "older.ckpt")
    assert ClassifierModule.load_from_checkpoint("older.ckpt").encoder.config.coordinates == "moves"
    main(["validate", *QUIET, "--ckpt_path=older.ckpt", "--run_dir=older", "--trainer.accelerator=cpu"])
    assert rows(Path("older")) == rows(trained)


NOWHERE = ["--data.train_shards=nowhere", "--data.val_shards=nowhere"]


# one of every moment at which a mistake is noticed; tests/test_bad_inputs.py has them all
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["validate"], "validate has no weights (runs/default/checkpoints/last.ckpt may be some): give --ckpt_path"),
        (["fit", "--data.train_scan=zigzag"], "no scan pattern is called 'zigzag': choose one of random, "),
        (["fit", "--model.encoder=Nobody"], "no encoder is called 'Nobody': choose one of Adventurer, "),
        (["fit", "--data.patch_size=32"], None),
        (["fit", "--data.train.num_glimpses=0"], "data.train.num_glimpses is 0: give at least 1"),
        (["fit", "--data.loader.batch_size=5000"], "has 1400 samples, less than the 5000 of one optimizer step"),
        (["fit", *NOWHERE], "nowhere does not exist: give a folder of shards, or of class folders with --data.folder"),
        (["fit", "--no.such.flag=1"], "no.such.flag"),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_end_in_one_sentence(
    arguments: list[str], said: str | None, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] == "fit":
        short = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2", f"--data.data_dir={data_dir}"]
        arguments = ["fit", *flags(TINY), *short, *arguments[1:]]
    if said is None:  # a glimpse as large as the smallest canvas is no mistake
        main(arguments)
    else:
        assert said in fails(arguments, capsys)


def test_checkpoints_that_cannot_be_used(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = trained / "checkpoints" / "last.ckpt"
    Path("cut.ckpt").write_bytes(good.read_bytes()[:20_000])
    Path("text.ckpt").write_text("not a checkpoint")
    torch.save({"state_dict": {}}, "foreign.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": Path("executed")}, "pickled.ckpt")
    for name in ("cut.ckpt", "text.ckpt", "foreign.ckpt", "pickled.ckpt"):
        said = fails(["validate", f"--ckpt_path={name}"], capsys)
        assert f"--ckpt_path {name} is damaged or not a checkpoint of a MambaEye run" in said
    said = fails(["validate", f"--ckpt_path={good}", "--model.encoder.dim=24"], capsys)
    assert "the checkpoint does not fit this encoder: encoder.projection.weight is (16, 1280), not (24, 1280)" in said


@pytest.mark.parametrize(
    ("damage", "workers"),  # those of the second line come to light in who reads
    [
        *(("missing", 0), ("shorter", 0), ("label", 0)),
        *product(["swapped", "undecodable"], [0]),
        *(pytest.param(damage, 2, marks=pytest.mark.long) for damage in ("swapped", "undecodable")),
    ],
)
def test_damaged_shards(
    damage: str, workers: int, trained: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data_dir / "digits" / "val", "shards")
    index_path, shard = Path("shards/index.json"), Path("shards/val-000001.tar")
    index, whole = json.loads(index_path.read_text()), shard.read_bytes()
    if damage == "missing":
        shard.unlink()
        expected = "shards/val-000001.tar is missing, though shards/index.json lists it"
    elif damage == "shorter":
        shard.write_bytes(whole[:-10_240])
        expected = f"has {len(whole) - 10_240} bytes and its index says {len(whole)}: copy the shard again"
    elif damage == "swapped":
        shard.write_bytes(Path("shards/val-000000.tar").read_bytes()[: len(whole)])
        expected = "shards/val-000001.tar does not hold sample digit-"
    elif damage == "undecodable":
        place, size = index["shards"][1]["offsets"][3], index["shards"][1]["sizes"][3]
        shard.write_bytes(whole[:place] + b"\0" * size + whole[place + size :])
        expected = f"the image of sample {index['shards'][1]['keys'][3]} does not decode"
    else:
        index["shards"][1]["labels"][3] = 10
        index_path.write_text(json.dumps(index))
        expected = (
            f"sample {index['shards'][1]['keys'][3]} in shards/val-000001.tar has label 10, outside the 10 classes"
        )
    settings = [
        "--data.val_shards=shards",
        f"--data.loader.num_workers={workers}",
        "--trainer.enable_progress_bar=false",
    ]
    said = fails(["validate", f"--ckpt_path={trained}/checkpoints/last.ckpt", "--run_dir=out", *settings], capsys)
    assert expected in said


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_every_argument_of_ours_has_a_sentence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help.all"])
    assert stop.value.code == 0
    arguments = " ".join(capsys.readouterr().out.partition("options:")[2].split()).split(" --")
    named = ("model.", "data.", "run_dir", "preemption.", "nonfinite.")
    ours = [words for words in arguments if words.startswith(named) and " for details. " not in words]  # of a link
    assert len(ours) > 25
    for words in ours:
        name, _, help_text = words.partition(" ")
        sentence = help_text.partition("(type:")[0]  # and not "(required, type:"
        assert sentence.rstrip().endswith(".") and len(sentence.split()) > 3, name  # noqa: PT018


def test_print_config_states_shared_numbers_once(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["fit"], ["validate", f"--ckpt_path={trained}/checkpoints/last.ckpt"]):
        with pytest.raises(SystemExit):
            main([*arguments, "--print_config"])
        text = capsys.readouterr().out
        assert text.count("num_classes:") == text.count("patch_size:") == 1
    assert "dim: 16" in text
