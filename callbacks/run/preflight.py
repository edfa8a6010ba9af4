"""One screen before the first step: what the run is about to do, and what would end it later."""

import shutil
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mambaeye.contracts import DataSpec, ModelSpec, OptimizerStep, data_of, model_of
from mambaeye.errors import InputError, on_all_ranks

COPIES = 3  # checkpoints at a time: last, best, and the one being written
MOMENTS = 2  # that AdamW keeps for every parameter
NOTICED = 0.05  # of the samples, left out of an epoch
PRODUCTS = {"highest": "float32 products", "high": "float32 products in TF32", "medium": "float32 products in bf16"}
EXAMPLES = 3  # shards that are named, of many

Line = tuple[str, str]
"""A subject, and what is to be said of it; [yellow] marks what is odd."""


class Preflight(Callback):
    """Prints, before training begins, what runs where, on which data, for how long and onto which disk.

    Whatever is bound to fail ends the run here, on all ranks: too little disk for checkpoints, a precision that the
    device does not have, no batch in an epoch. What is merely odd is marked.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model, data = model_of(pl_module), data_of(trainer)
        with on_all_ranks():
            lines = [*processes(trainer, model, data), *samples(trainer, data), schedule(trainer, model)]
            lines += validations(trainer, data)
            lines += [*memory(trainer, pl_module, device_memory(trainer)), disk(trainer, pl_module)]
        show(lines)


def processes(trainer: Trainer, model: ModelSpec, data: DataSpec) -> list[Line]:
    """Return what runs where.

    Raises:
        InputError: the device does not have the precision.
    """
    device = trainer.strategy.root_device
    if device.type == "cuda" and "bf16" in trainer.precision and not torch.cuda.is_bf16_supported(False):
        raise InputError(f"trainer.precision is {trainer.precision}, which {device} does not have: choose 32-true")
    name, products = device.type, ""
    if device.type == "cuda":
        name, products = torch.cuda.get_device_name(device), f", {PRODUCTS[torch.get_float32_matmul_precision()]}"
    images, micro_batch, accumulation = data.optimizer_step
    return [
        ("processes", f"{trainer.world_size} on {trainer.num_nodes} nodes, {name}, {trainer.precision}{products}"),
        ("encoder", model.backend),
        (
            "optimizer step",
            f"{images} images = {trainer.world_size} processes x {micro_batch} x {accumulation} accumulated",
        ),
    ]


def samples(trainer: Trainer, data: DataSpec) -> list[Line]:
    """Return how many samples there are, how many of them an epoch takes, and who loads them."""
    train, batches = data.train_split, data.train_batches
    used = batches * trainer.world_size * data.optimizer_step.micro_batch
    workers = trainer.world_size * max(1, data.num_workers)
    rest = left_out(train.samples, used, trainer.world_size, data.optimizer_step)
    readers = f"{workers} in all"
    if train.streaming and train.shards < workers:
        readers += f" [yellow]for {train.shards} shards that stream: some read the same shard"
    elif batches < workers // trainer.world_size:
        readers += f" [yellow]for {batches} batches: some have nothing to do"
    return [
        *(
            (name, f"{split.samples} samples in {split.shards} shards, of the sizes in their index")
            for name, split in (("training", train), ("validation", data.val_split))
        ),
        *shards_by_class(data),
        ("epoch", f"{batches} batches a process; {rest}"),
        ("loader workers", readers),
    ]


def left_out(samples: int, used: int, ranks: int, step: OptimizerStep) -> str:
    """Return how many samples do not fill a last optimizer step and, if they are many, a batch size that fits better.

    Args:
        samples: in all.
        used: in an epoch.
        ranks: processes.
        step: what an optimizer step is made of.
    """
    text = f"{samples - used} of {samples} samples are left out, others every time"
    if samples - used <= NOTICED * samples or step.accumulation > 1:
        return text
    sizes = range(step.images, step.images // 2, -ranks)  # which ranks can share evenly, too
    best = min(sizes, key=lambda size: samples % size)
    if samples % best >= samples - used:
        return text
    return f"{text}; [yellow]data.loader.batch_size {best} would leave out {samples % best}"


def shards_by_class(data: DataSpec) -> list[Line]:
    """Return what is to be said of training shards that are sorted by class, if there are such."""
    names = data.class_sorted_shards
    if not names:
        return []
    examples = escape(", ".join(names[:EXAMPLES])) + (", ..." if len(names) > EXAMPLES else "")
    text = (
        f"[yellow]{len(names)} of {data.train_split.shards} are sorted by class ({examples}), and so will batches be: "
        f"pack the images in shuffled order with 'python -m datamodules.pack IMAGES DEST', or train from copies on a "
        f"local disk with data.loader.shuffle_span null"
    )
    return [("shards", text)]


def schedule(trainer: Trainer, model: ModelSpec) -> Line:
    """Return how long training takes, in optimizer steps."""
    warmup, total = model.schedule_steps
    text = f"{total} optimizer steps, {warmup} of them warm-up"
    if warmup >= total:
        text += " [yellow]which does not end: set fewer model.optimizer.warmup_epochs"
    if not any(group["initial_lr"] for group in trainer.optimizers[0].param_groups):  # the peak of each one's schedule
        text += " [yellow]at model.optimizer.lr 0: nothing is learnt"
    if trainer.ckpt_path:
        text += f"; from the place in {trainer.ckpt_path}"
    return "schedule", text


def validations(trainer: Trainer, data: DataSpec) -> list[Line]:
    """Return what is to be said of a fit that will never validate."""
    every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
    never = not trainer.limit_val_batches
    if every and epochs and epochs > 0 and trainer.val_check_interval == 1.0:
        steps_to_first = every * (data.train_batches // data.optimizer_step.accumulation)
        never |= every > epochs or 0 < trainer.max_steps < steps_to_first
    remedy = "set trainer.check_val_every_n_epoch and trainer.limit_val_batches, or be content with last.ckpt"
    return [("validation", f"[yellow]never, so that there is no best.ckpt: {remedy}")] if never else []


def device_memory(trainer: Trainer) -> int | None:
    """Return the bytes of the GPU's memory; None without a GPU."""
    device = trainer.strategy.root_device
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def memory(trainer: Trainer, pl_module: LightningModule, room: int | None) -> list[Line]:
    """Return what a training step takes of a GPU's memory, counted on one image: nothing where there is no GPU.

    Args:
        trainer: which is about to fit.
        pl_module: on its device.
        room: bytes that there are.
    """
    if room is None:
        return []
    data = data_of(trainer)
    sample = pl_module.transfer_batch_to_device(data.largest_sample, pl_module.device, 0)
    with trainer.precision_plugin.forward_context():
        kept = data.optimizer_step.micro_batch * model_of(pl_module).kept_bytes(sample)
    total = kept + parameter_bytes(pl_module) * (2 + MOMENTS)  # weights and gradients
    text = f"{total / 2**30:.1f} of {room / 2**30:.1f} GiB, {kept / 2**30:.1f} of them activations"
    if total > room:
        text += (
            " [yellow]which is more than there is: set a smaller data.loader.micro_batch_size (the optimizer step is "
            "the same then), model.checkpoint_activations true, or trainer.precision bf16-mixed"
        )
    return [("memory of a step", text)]


def parameter_bytes(pl_module: LightningModule) -> int:
    """Return the bytes of all parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in pl_module.parameters())


def disk(trainer: Trainer, pl_module: LightningModule) -> Line:
    """Return what room there is.

    Raises:
        InputError: it is not enough.
    """
    folder = Path(trainer.default_root_dir)
    free = shutil.disk_usage(folder).free
    size = parameter_bytes(pl_module) * (1 + MOMENTS)
    if free < COPIES * size:
        raise InputError(
            f"{folder} has {free / 2**20:.0f} MiB free and {COPIES} checkpoints take {COPIES * size / 2**20:.0f}: "
            f"make room or choose another --run_dir"
        )
    return "disk", f"{free / 2**30:.1f} GiB free in {folder}; a checkpoint takes {size / 2**20:.1f} MiB"


@rank_zero_only
def show(lines: list[Line]) -> None:
    """Print a table of them."""
    table = Table(box=SIMPLE_HEAD, show_header=False, title="before the first step", title_justify="left")
    for line in lines:
        table.add_row(*line)
    Console().print(table)
