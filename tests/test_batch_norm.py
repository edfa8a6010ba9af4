"""Batch norm against torch's own, in two processes against one, and what leaves its running means alone."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_conformance import batch_for, build
from torch import Tensor, nn

from mambaeye.blocks import checkpoint_blocks
from mambaeye.encoders.efficient_vim import EfficientViM
from mambaeye.module import ClassifierModule
from mambaeye.ops.batch_norm import BatchNorm, ConvNorm

TRACKED = ("running_mean", "running_var", "num_batches_tracked")


def maps(seed: int, images: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(images, 3, 4, 5, generator=draw, dtype=dtype) * 2 + torch.arange(3.0)[:, None, None]


def tracked(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers() if name.rpartition(".")[2] in TRACKED}


def test_it_is_torchs_own_in_training_and_evaluation() -> None:
    ours, theirs = BatchNorm(3).double(), nn.BatchNorm2d(3).double()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    weights = {"weight": torch.tensor([0.5, 2.0, -1.0]), "bias": torch.tensor([1.0, 0.0, 3.0])}
    for norm in (ours, theirs):
        norm.load_state_dict(norm.state_dict() | weights)
    for seed in range(3):
        x = maps(seed).requires_grad_()
        results = [norm(x) for norm in (ours, theirs)]
        torch.testing.assert_close(*results)
        gradients = [torch.autograd.grad(y.sin().sum(), [x, *n.parameters()]) for y, n in zip(results, (ours, theirs))]  # noqa: B905
        for mine, other in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, other)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    torch.testing.assert_close(ours.eval()(maps(9)), theirs.eval()(maps(9)))


def test_running_means_move_only_where_the_norm_is_trained() -> None:
    norm = BatchNorm(3).double()
    before = tracked(norm)
    expected = norm.eval()(maps(0))
    norm.train()
    with torch.no_grad():
        torch.testing.assert_close(norm(maps(0)), expected)
    norm.weight.requires_grad_(False)
    torch.testing.assert_close(norm(maps(0)), expected)
    assert all(value.equal(before[name]) for name, value in tracked(norm).items())
    norm.weight.requires_grad_(True)
    norm(maps(0))
    assert not any(value.equal(before[name]) for name, value in tracked(norm).items())


def test_a_batch_that_is_not_finite_leaves_no_trace() -> None:
    norm = BatchNorm(3).double()
    before, x = tracked(norm), maps(0)
    x[2, 1, 0, 0] = torch.nan
    assert norm(x).isnan().any()
    assert norm.running_mean.equal(before["running_mean"])
    assert norm.running_var.equal(before["running_var"])


def test_a_single_value_a_channel_goes_by_the_running_means() -> None:
    norm = BatchNorm(3)
    x = torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(norm(x), x / (1 + 1e-5) ** 0.5)
    assert norm.num_batches_tracked == 0


def test_blocks_that_are_computed_again_move_them_once() -> None:
    """To the same values, and to the same as without."""
    encoder = build(EfficientViM)
    again = copy.deepcopy(encoder)
    checkpoint_blocks(again)
    for one in (encoder, again):
        one.logits(one.encode(batch_for(one))).sin().sum().backward()
    assert all(value.equal(tracked(encoder)[name]) for name, value in tracked(again).items())
    assert {int(n) for name, n in tracked(again).items() if name.endswith("tracked")} == {1}
    assert BatchNorm.moves


def test_a_frozen_backbone_and_curves_of_training_leave_them_alone() -> None:
    module = ClassifierModule(build(EfficientViM), head_only=True).train()
    before = tracked(module)
    module._encoder_loss(batch_for(module.encoder)).backward()
    assert all(value.equal(before[name]) for name, value in tracked(module).items())
    module = ClassifierModule(build(EfficientViM)).train()
    module.per_step_loss(batch_for(module.encoder), 2)
    module.training_flops(batch_for(module.encoder))
    module.kept_bytes(batch_for(module.encoder))
    assert all(value.equal(before[name]) for name, value in tracked(module).items())


def test_micro_batches_are_normalised_each_by_itself_and_their_gradients_add_up() -> None:
    """As torch's own does: a step of two micro-batches is no step of one batch of both."""
    ours, theirs = nn.Sequential(ConvNorm(3, 4)).double(), nn.Sequential(nn.Conv2d(3, 4, 1, bias=False)).double()
    theirs.append(nn.BatchNorm2d(4).double())
    theirs[0].load_state_dict(ours[0].conv.state_dict())
    for model in (ours, theirs):
        for seed in (0, 1):
            (model(maps(seed)).sin().sum() / 2).backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    torch.testing.assert_close(ours[0].norm.running_var, theirs[1].running_var)


def model_of_two_norms() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(ConvNorm(3, 4, 3, relu=True), ConvNorm(4, 3)).double()


def main(rank: int, folder: Path) -> None:
    """One of two processes, with 2 and 3 of five images in a step of two micro-batches, as DDP sees it."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(model_of_two_norms())
    outputs = []
    for micro_batch in range(2):
        x = maps(micro_batch).tensor_split((2,))[rank]
        with model.no_sync() if micro_batch == 0 else torch.enable_grad():
            outputs.append(model(x))
            (2 * outputs[-1].sin().sum()).backward()  # of which DDP takes the mean
    x = maps(2).tensor_split((2,))[rank]
    compiled = torch.compile(model.module, backend="aot_eager", fullgraph=True, dynamic=True)
    last = compiled(x)
    on_meta = copy.deepcopy(model.module).to("meta")
    on_meta(x.to("meta")).sum().backward()  # waits for nobody: the other process does not
    gradients = [parameter.grad for parameter in model.parameters()]
    torch.save(
        [*(y.detach() for y in outputs), last.detach(), *gradients, tracked(model.module)], folder / f"{rank}.pt"
    )
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_processes(tmp_path_factory: pytest.TempPathFactory) -> list[list]:
    folder = tmp_path_factory.mktemp("processes")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder)]
    ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in (0, 1)]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.long
def test_two_processes_compute_what_one_does(of_processes: list[list]) -> None:
    """Answers, gradients over two micro-batches and running means; compiled, too."""
    model, outputs = model_of_two_norms(), []
    for micro_batch in range(2):
        outputs.append(model(maps(micro_batch)))
        outputs[-1].sin().sum().backward()
    outputs.append(model(maps(2)))
    first, second = of_processes
    for expected, *halves in zip(outputs, first, second, strict=False):
        torch.testing.assert_close(torch.cat(halves), expected.detach())
    for rank in of_processes:
        for gradient, parameter in zip(rank[3:-1], model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad)
        for name, value in tracked(model).items():
            torch.testing.assert_close(rank[-1][name], value)


if __name__ == "__main__":
    main(int(sys.argv[2]), Path(sys.argv[1]))
