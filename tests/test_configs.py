import json
import re
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml
from commands import NO_PICTURES, flags

import mambaeye
from callbacks.run.directory import default_run_dir
from mambaeye.command_line.gpu_overlay import gpu_overlay
from train import main

ROOT = Path(__file__).parents[1]
SMALL = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.max_steps=2",
    "--trainer.limit_val_batches=2",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.enable_progress_bar=false",
    *flags(NO_PICTURES),
    "--model.encoder.depth=1",
    "--data.train_shards=null",
    "--data.val_shards=null",
    "--data.num_classes=10",
    "--data.train.canvas=[32,64]",
    "--data.train.num_glimpses=8",
    "--data.evaluate.num_glimpses=8",
    "--data.resolutions=[32]",
    "--data.loader.batch_size=4",
    "--data.loader.num_workers=0",
]


@pytest.fixture(autouse=True)
def products_as_before() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.long
def test_the_imagenet_recipe_runs_is_fine_tuned_and_validated(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps of each on the digits: augmentations, mixing and weights to start from, all by config."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    small = [*SMALL, f"--data.data_dir={data_dir}"]
    mixing = ["--data.train.mixing.mixup=0.5", "--data.train.mixing.cutmix=0.5"]
    within = [
        "--trainer.callbacks.init_args.every_n_train_steps=1",
        "--last.every_n_epochs=0",
    ]  # who else writes last.ckpt
    encoder = f"--config={ROOT}/configs/encoders/small.yaml"
    main(["fit", f"--config={ROOT}/configs/imagenet.yaml", encoder, *small, *mixing, *within])
    weights = tmp_path / "runs/imagenet-small/checkpoints/last.ckpt"
    assert choices_of(tmp_path / "runs/imagenet-small") == ("32-true", "high", [0.05, 0.05])
    main(["fit", f"--config={ROOT}/configs/finetune.yaml", encoder, *small, f"--model.init_from={weights}"])
    checkpoint = torch.load(tmp_path / "runs/finetune-small/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert choices_of(tmp_path / "runs/finetune-small") == ("32-true", "high", [0.05, 0.05])
    assert checkpoint["datamodule_hyper_parameters"]["train"]["augmentation"]["perspective"] == 0.3
    start, end = torch.load(weights, weights_only=True)["state_dict"], checkpoint["state_dict"]
    change = max((end[name] - start[name]).abs().max().item() for name in start)
    assert 0 < change < 0.01  # two small steps from where the first run ended
    capsys.readouterr()
    main(
        [
            "validate",
            f"--ckpt_path={tmp_path}/runs/finetune-small/checkpoints/last.ckpt",
            "--trainer.accelerator=cpu",
            *flags(NO_PICTURES),
        ]
    )
    assert "not as in the checkpoint" not in capsys.readouterr().out
    assert (tmp_path / "runs/finetune-small/validate.yaml").exists()


def choices_of(run_dir: Path) -> tuple[str, str, list[float]]:
    """Return what a fit was run with: precision, products of float32 matrices (as torch has it now), decay by group."""
    checkpoint = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    (optimizer,) = checkpoint["optimizer_states"]
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert all(group["params"] for group in optimizer["param_groups"])
    decays = [group["weight_decay"] for group in optimizer["param_groups"]]
    return config["trainer"]["precision"], torch.get_float32_matmul_precision(), decays


def test_our_overlay_runs_over_the_papers_recipe(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps, in bf16 and with norms, biases and the recurrence spared."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    configs = [f"--config={ROOT}/configs/{name}.yaml" for name in ("imagenet", "ours", "encoders/tiny")]
    main(["fit", *configs, *SMALL, f"--data.data_dir={data_dir}", "--trainer.enable_model_summary=false"])
    assert choices_of(tmp_path / "runs/imagenet-ours-tiny") == ("bf16-mixed", "high", [0.05, 0.0])


def test_the_papers_protocol_validates_weights_and_checkpoints(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its smallest and largest resolution, with fewer glimpses, on the digits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    small = [flag for flag in SMALL if "max_steps" not in flag and "resolutions" not in flag]
    small += [f"--data.data_dir={data_dir}", "--model.encoder.dim=16", "--model.encoder.headdim=8"]
    main(["fit", *small, "--trainer.max_steps=1", "--run_dir=run"])
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    mambaeye.save(mambaeye.load(checkpoint), tmp_path / "exported")
    fewer = ["--data.loader.batch_size=1", "--data.resolutions=[224,1536]"]
    protocol = ["validate", f"--config={ROOT}/configs/validate_paper.yaml", *small, *fewer]
    main([*protocol, f"--ckpt_path={checkpoint}", "--run_dir=of_checkpoint"])
    main([*protocol, "--model.init_from=exported/model.safetensors", "--run_dir=of_weights"])
    found = [json.loads((tmp_path / f"of_{what}/validation.json").read_text()) for what in ("checkpoint", "weights")]
    assert found[0] == found[1]
    assert {row["resolution"] for row in found[0]["rows"]} == {224, 1536}
    theirs = {"resize": "fit", "interpolation": "lanczos", "truncate": True, "skip_edge": True}
    assert found[0]["protocol"] == {"num_glimpses": 8, "report_at": [], "shift": [0, 0], **theirs}
    main([*protocol, f"--ckpt_path={checkpoint}", "--data.evaluate.resize=full", "--run_dir=stretched"])
    stretched = json.loads((tmp_path / "stretched/validation.json").read_text())
    assert stretched["protocol"] == {**found[0]["protocol"], "resize": "full"}
    assert stretched["rows"] == found[0]["rows"]  # digits are square


def test_the_cifar10_recipe_runs(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps on the digits, on a CPU, and what it says of augmentation is what the checkpoint holds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    path = ROOT / "configs/cifar10.yaml"
    main(["fit", f"--config={path}", *SMALL, "--trainer.precision=32-true", f"--data.data_dir={data_dir}"])
    checkpoint = torch.load(tmp_path / "runs/cifar10/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    given = yaml.safe_load(path.read_text())["data"]["train"]["augmentation"]
    augmentation = checkpoint["datamodule_hyper_parameters"]["train"]["augmentation"]
    assert {name: listed(augmentation[name]) for name in given} == given
    assert augmentation.keys() - given.keys() == {"blur_kernel", "blur_sigma", "truncate"}  # there is no blur


def listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


OURS = ROOT / "configs/ours.yaml"
LARGER = ROOT / "configs/folder_gpu.yaml"
VARIED = ROOT / "configs/imagenet_varied.yaml"
RECIPES = sorted({*(ROOT / "configs").glob("*.yaml")} - {OURS, LARGER, VARIED})
PAPER = {ROOT / f"configs/{name}.yaml": command for name, command in
         (("imagenet", "fit"), ("finetune", "fit"), ("validate_paper", "validate"))}  # fmt: skip
OVERLAYS = sorted((ROOT / "configs/encoders").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_its_header_says_the_command(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "validate" if path.stem.startswith("validate") else "fit"
    with pytest.raises(SystemExit) as stop:
        main([command, f"--config={path}", "--model.init_from=some.pt", "--print_config"])
    assert stop.value.code == 0
    parsed = yaml.safe_load(capsys.readouterr().out)
    assert_holds(yaml.safe_load(path.read_text()), parsed)
    assert f"#   python train.py {command} --config configs/{path.name}" in path.read_text()


def assert_holds(given: dict, parsed: dict) -> None:
    """A config says just what was parsed, wherever encoders' arguments may lie."""
    for name, value in given.items():
        if isinstance(value, dict) and value:
            assert_holds(value, parsed[name].get("init_args", parsed[name]) if name == "encoder" else parsed[name])
        elif name == "policy":
            assert parsed[name]["class_path"].endswith(f".{value}")
        elif value not in ({}, None) and name != "callbacks":
            assert parsed[name] == value, name


@pytest.fixture(scope="module")
def of_imagenet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return imagenet.yaml alone as it is printed."""
    said = StringIO()
    with chdir(tmp_path_factory.mktemp("printed")), redirect_stdout(said), pytest.raises(SystemExit):
        main(["fit", f"--config={ROOT}/configs/imagenet.yaml", "--print_config"])
    return said.getvalue()


SHORT = (("trainer", "max_epochs"), ("data", "resolutions"), ("data", "scans"), ("data", "train_scan"))


@pytest.mark.long
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_changes_the_encoder_alone(
    overlay: Path, of_imagenet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """imagenet.yaml with and without it; the run directory's name says which it was."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", f"--config={ROOT}/configs/imagenet.yaml", f"--config={overlay}", "--print_config"])
    without, given = yaml.safe_load(of_imagenet), yaml.safe_load(capsys.readouterr().out)
    said = yaml.safe_load(overlay.read_text())
    encoder, name = said["model"]["encoder"], f"runs/imagenet-{overlay.stem}"
    if overlay.stem.endswith("_quickstart"):  # which says how long, by what steps and on which canvases it was measured
        step = said["model"].get("optimizer", {})
        assert step.keys() <= {"lr", "warmup_epochs"}
        assert_holds({"trainer": said["trainer"], "data": said["data"], "model": {"optimizer": step}}, given)
        for config in (without, given):
            for option in step:
                config["model"]["optimizer"].pop(option)
            for group, option in SHORT:
                config[group].pop(option)
            config["data"]["train"].pop("canvas")
    else:
        assert said.keys() == {"model"}
    assert given["model"]["encoder"]["class_path"].endswith(encoder["class_path"])
    assert given["model"]["encoder"]["init_args"].items() >= encoder["init_args"].items()
    assert given["run_dir"] == name
    assert given["last"].get("dirpath", f"{name}/checkpoints") == f"{name}/checkpoints"
    del given["model"]["encoder"], without["model"]["encoder"], given["run_dir"], without["run_dir"]
    assert given == without
    commands = re.findall(r"^# +python train.py .*$", overlay.read_text(), re.MULTILINE)
    assert commands
    assert all(f"--config configs/encoders/{overlay.name}" in command for command in commands)


def test_our_overlay_says_all_that_it_changes_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over each of the paper's recipes; what none of them has otherwise would be no choice."""
    monkeypatch.chdir(tmp_path)
    says, changed = flat(yaml.safe_load(OURS.read_text())), set()
    for recipe, command in PAPER.items():
        printed = []
        for configs in ([recipe], [recipe, OURS]):
            given = [f"--config={config}" for config in configs]
            with pytest.raises(SystemExit):
                main([command, *given, "--run_dir=run", "--model.init_from=some.pt", "--print_config"])
            printed.append(flat(yaml.safe_load(capsys.readouterr().out)))
        theirs, ours = printed
        assert {name: ours[name] for name in says} == says
        differs = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
        assert differs <= says.keys()
        changed |= differs
    assert changed == says.keys()
    commands = re.findall(r"^# +python train.py .*$", OURS.read_text(), re.MULTILINE)
    assert any("--config configs/imagenet.yaml --config configs/ours.yaml" in command for command in commands)


def test_the_overlay_for_a_gpu_enlarges_sizes_and_changes_no_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over configs/folder.yaml, in a run directory of its own."""
    monkeypatch.chdir(tmp_path)
    recipe, printed = ROOT / "configs/folder.yaml", []
    for configs in ([recipe], [recipe, LARGER]):
        with pytest.raises(SystemExit):
            main(["fit", *(f"--config={config}" for config in configs), "--print_config"])
        printed.append(flat(yaml.safe_load(capsys.readouterr().out)))
    small, large = printed
    differs = {name for name in small.keys() | large.keys() if small.get(name) != large.get(name)}
    device = {"trainer.accelerator": "gpu", "trainer.precision": "bf16-mixed", "model.optimizer.lr": 1e-3}
    assert large["run_dir"] == "runs/folder-folder_gpu"
    assert {name: large[name] for name in device} == device
    sizes = differs - device.keys() - {"run_dir"}
    assert all(large[name] > small[name] for name in sizes)
    assert {name.rpartition(".")[2] for name in sizes} == {
        *("dim", "depth", "d_state", "headdim", "resolutions", "canvas", "num_glimpses", "resize", "num_workers")
    }


@pytest.mark.parametrize(
    ("configs", "device", "named"),
    [
        (["configs/folder.yaml"], "cuda:0", "configs/folder_gpu.yaml"),
        (["configs/folder.yaml"], "cpu", None),
        (["configs/folder.yaml", "configs/folder_gpu.yaml"], "cuda:0", None),
        (["configs/quickstart.yaml"], "cuda:0", None),
        ([], "cuda:0", None),
    ],
)
def test_sizes_for_a_gpu_are_named_where_one_is_and_they_were_not_taken(
    configs: list[str], device: str, named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    said = gpu_overlay(configs, torch.device(device))
    assert (said is None) == (named is None)
    assert named is None or f"a GPU is here: --config {named} after the other configs" in str(said)


def test_the_varied_overlay_changes_the_paths_of_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As its header's command has it, and over fine-tuning; and the run directory is the header's."""
    monkeypatch.chdir(tmp_path)
    header = VARIED.read_text().replace("\\\n#", "")
    (command,) = re.findall(r"^# +python train.py (fit .*)$", header, re.MULTILINE)
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in command.split()]
    recipe = str(ROOT / "configs/imagenet.yaml")
    assert {recipe, str(OURS), str(VARIED)} < {*words}
    for base in (words, [str(ROOT / "configs/finetune.yaml") if word == recipe else word for word in words]):
        at, printed = base.index(str(VARIED)), []
        for arguments in (base[: at - 1] + base[at + 1 :], base):
            with pytest.raises(SystemExit):
                main([*arguments, "--print_config"])
            printed.append(flat(yaml.safe_load(capsys.readouterr().out)))
        without, given = printed
        differs = {name: given[name] for name in given if given[name] != without[name]}
        assert differs.pop("run_dir").endswith("-ours-imagenet_varied-base")
        assert differs.pop("data.train_scan") == "varied"
        assert all("dirpath" in name for name in differs)
        assert given.keys() == without.keys()
    assert "runs/imagenet-ours-imagenet_varied-base/checkpoints/best.ckpt" in header
    assert "Not run on ImageNet" in header


def test_training_on_varied_paths_runs_over_the_papers_recipe(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps on the digits, with glimpses that may hang over the image, as the paper's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    configs = [f"--config={ROOT}/configs/{name}.yaml" for name in ("imagenet", "imagenet_varied", "encoders/tiny")]
    main(["fit", *configs, *SMALL, f"--data.data_dir={data_dir}", "--trainer.enable_model_summary=false"])
    path = tmp_path / "runs/imagenet-imagenet_varied-tiny/checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 2
    assert checkpoint["datamodule_hyper_parameters"]["train_scan"] == "varied"


def flat(config: dict, prefix: str = "") -> dict[str, object]:
    """Plain values by their full names."""
    values: dict[str, object] = {}
    for name, value in config.items():
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return values


@pytest.mark.parametrize(
    ("configs", "ckpt_path", "expected"),
    [
        (["configs/imagenet.yaml", "configs/encoders/small.yaml"], None, "runs/imagenet-small"),
        (["quickstart.yaml"], "runs/other/checkpoints/best.ckpt", "runs/quickstart"),
        ([], "some/run/checkpoints/best.ckpt", "some/run"),
        ([], "best.ckpt", "runs/default"),
        ([], "last", "runs/default"),
        ([], None, "runs/default"),
    ],
)
def test_where_a_run_is(configs: list[str], ckpt_path: str | None, expected: str) -> None:
    assert default_run_dir(configs, ckpt_path) == expected
