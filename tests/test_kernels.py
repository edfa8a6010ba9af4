"""The CUDA kernels against the plain torch path, which test_ssd.py and test_encoder.py hold to float64."""

import sys
import warnings

import pytest
import torch
from scenes import scene_of
from torch import Tensor

from mambaeye.batch import Scene
from mambaeye.encoders.mambaeye import EncoderConfig, MambaEye
from mambaeye.errors import InputError
from mambaeye.evaluation.diagnosis import diagnose
from mambaeye.ops import kernel_selection, kernels
from mambaeye.rollout import Rollout

SMALL = {"num_classes": 10, "dim": 64, "depth": 2, "d_state": 16, "headdim": 16, "move_embedding_dim": 16}
# largest difference of logits, and of gradients as a share of each tensor's largest. float32: reduced-precision
# products (TF32) in the kernels; bf16: eight bits of mantissa
TOLERANCES = {torch.float32: (2e-2, 2e-2), torch.bfloat16: (1e-1, 1e-1)}


@pytest.fixture
def on_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    try:
        kernels.load()
    except ImportError as error:
        pytest.skip(kernel_selection.missing(error))


def glimpses(batch: int, length: int, device: str = "cuda") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    patches = torch.randint(256, (batch, length, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return patches.to(device), torch.randint(500, (batch, length, 2), generator=generator).to(device)


def two_models(wanted: kernel_selection.Kernels = "cuda") -> tuple[MambaEye, MambaEye]:
    """The same weights twice on the GPU: with the kernels, and in plain torch."""
    torch.manual_seed(0)
    torch_model = MambaEye(EncoderConfig(**SMALL), "torch").cuda()
    cuda_model = MambaEye(EncoderConfig(**SMALL), wanted).cuda()
    cuda_model.load_state_dict(torch_model.state_dict())
    return cuda_model, torch_model


def in_pieces(model: MambaEye, patches: Tensor, positions: Tensor, sizes: list[int]) -> Tensor:
    state, logits = model.initial_state(len(patches)), []
    for piece in torch.arange(patches.shape[1]).split(sizes):
        some, state = model.stream(patches[:, piece], positions[:, piece], state)
        logits.append(some)
    return torch.cat(logits, dim=1)


@pytest.mark.cuda
@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("sizes", [[1], [2], [255], [256], [300], [1, 299], [3, 1, 256, 40], [128, 128, 44]], ids=str)
def test_values_and_gradients_are_those_of_plain_torch(dtype: torch.dtype, sizes: list[int]) -> None:
    of_logits, of_gradients = TOLERANCES[dtype]
    patches, positions = glimpses(3, sum(sizes))
    results = []
    for model in two_models():
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
            whole = len(sizes) == 1
            logits = model(patches, positions) if whole else in_pieces(model, patches, positions, sizes)
        logits = logits.float()
        results.append((logits, torch.autograd.grad(logits.sin().sum(), list(model.parameters()))))
    (got, got_gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(got, expected, atol=of_logits, rtol=0)
    for one, other in zip(got_gradients, expected_gradients, strict=True):
        assert (one - other).abs().max() <= of_gradients * other.abs().max()


@pytest.mark.cuda
@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@torch.no_grad()
def test_glimpse_by_glimpse_is_plain_torch_and_spares_the_state(dtype: torch.dtype) -> None:
    patches, positions = glimpses(3, 40)
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        got, expected = (in_pieces(model, patches, positions, [1] * 40) for model in two_models())
        model, _ = two_models()
        state = model.initial_state(3)
        model.stream(patches[:, :1], positions[:, :1], state)
    torch.testing.assert_close(got.float(), expected.float(), atol=TOLERANCES[dtype][0], rtol=0)
    assert all(part.eq(0).all() for part in state)


@pytest.mark.cuda
@pytest.mark.usefixtures("on_gpu")
def test_a_diagnosis_is_that_of_plain_torch() -> None:
    """The kernels change states in place, and the diagnosis compares each with the one before."""
    torch.manual_seed(0)
    scene = Scene(*(part.cuda() for part in scene_of(3, 40, side=16, size=(200, 220))))
    got, expected = (diagnose(Rollout(model, scene, at_once=1)) for model in two_models())
    assert got.positions.equal(expected.positions)
    for part, other in zip(got[:-1], expected[:-1], strict=True):
        assert (part - other).abs().max() <= TOLERANCES[torch.float32][1] * other.abs().max()


@pytest.mark.cuda
@pytest.mark.usefixtures("on_gpu")
def test_auto_takes_the_kernels_but_not_for_float64() -> None:
    model, _ = two_models("auto")
    assert (
        kernel_selection.select_backend("auto", torch.zeros(1, device="cuda"), model.unsupported_reason).kernels
        is kernels.load()
    )
    patches, positions = glimpses(2, 5)
    assert model.double()(patches, positions).dtype == torch.float64


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither package can be imported, whatever the machine has."""
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    kernels.load.cache_clear()
    kernel_selection.checked_kernels.cache_clear()
    kernel_selection.warn_fallback.cache_clear()


@pytest.mark.usefixtures("without_packages")
def test_without_the_packages_cuda_is_refused_with_the_command_to_install_them() -> None:
    with pytest.raises(InputError, match=r"do not load .*causal_conv1d.*install them with pip install"):
        MambaEye(EncoderConfig(**SMALL), "cuda")
    assert MambaEye(EncoderConfig(**SMALL), "auto")(*glimpses(1, 2, "cpu")).shape == (1, 2, 10)


class OnGPU:
    """All that is asked of a tensor when kernels are chosen."""

    device, dtype = torch.device("cuda", 0), torch.float32


@pytest.mark.usefixtures("without_packages")
@pytest.mark.parametrize(("unsupported_reason", "message"), [(None, "pip install"), ("too odd", "too odd; until then")])
def test_auto_does_without_them_on_a_gpu_and_says_so_once(unsupported_reason: str | None, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        assert kernel_selection.select_backend("auto", OnGPU(), unsupported_reason) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernel_selection.select_backend("auto", OnGPU(), unsupported_reason) is None
        assert kernel_selection.select_backend("torch", OnGPU(), unsupported_reason) is None
        assert kernel_selection.select_backend("auto", torch.zeros(1), unsupported_reason) is None


def test_cuda_is_refused_on_the_cpu() -> None:
    with pytest.raises(InputError, match="cannot run torch.float32 on cpu: choose auto or torch"):
        kernel_selection.select_backend("cuda", torch.zeros(1), None)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_the_papers_sizes_fit(size: str) -> None:
    assert MambaEye(EncoderConfig.named(size, depth=1)).unsupported_reason is None


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"dim": 96, "d_state": 32, "headdim": 32},
            "an input projection of 454 values, .* multiples of 8: the nearest",
        ),
        ({"dim": 3, "expand": 1, "headdim": 3}, "give expand \\* dim, now 3, as a multiple of 8"),
        ({"d_conv": 5}, "encoder.d_conv is 5: the CUDA kernels take 4 at most"),
    ],
)
def test_sizes_that_the_kernels_cannot_take(sizes: dict[str, int], message: str) -> None:
    assert MambaEye(EncoderConfig(depth=1, **sizes)).unsupported_reason
    with pytest.raises(InputError, match=message):
        MambaEye(EncoderConfig(depth=1, **sizes), "cuda")


@pytest.mark.parametrize(("inner", "headdim", "d_state"), [(192, 32, 32), (512, 50, 63), (24, 5, 7), (1024, 128, 101)])
def test_the_nearest_sizes_do_fit(inner: int, headdim: int, d_state: int) -> None:
    words = kernel_selection.unsupported_reason(inner, headdim, d_state, 4).split("headdim ")[-1].split()
    near = int(words[0]), int(words[-1])
    assert inner % near[0] == 0
    assert (2 * inner + 2 * near[1] + inner // near[0]) % 8 == 0
    assert kernel_selection.unsupported_reason(inner, *near, 4) is None
