"""The directions of imports: data flows one way, and so do names."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mambaeye", "datamodules", "callbacks")
FILES = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

# What files of each room may import of the project: rooms and single modules, the longest name that fits a file counts.
BATCH = ("mambaeye.batch", "mambaeye.errors")
BELOW = (*BATCH, "mambaeye.geometry", "mambaeye.ops", "mambaeye.configurable")
MODEL = (
    *(*BELOW, "mambaeye.encoders", "mambaeye.policies", "mambaeye.policy_learning", "mambaeye.rollout"),
    *("mambaeye.loss", "mambaeye.evaluation"),
)
WALK = ("mambaeye.encoders.base", "mambaeye.policies", "mambaeye.rollout")
WRITING = ("mambaeye.atomic", "mambaeye.locks")
FILES_OF = (
    *("mambaeye.atomic", "mambaeye.plain_files", "mambaeye.saved_values"),
    *("mambaeye.checkpoints", "mambaeye.weights"),
)
CONTRACTS = ("mambaeye.contracts", "mambaeye.encoders.base", "mambaeye.rollout", "mambaeye.evaluation")
MAY_IMPORT = {
    "mambaeye": ("mambaeye",),
    "mambaeye.atomic": ("mambaeye.errors",),
    "mambaeye.batch": (),
    "mambaeye.errors": (),
    "mambaeye.failures": ("mambaeye.atomic",),
    "mambaeye.configurable": ("mambaeye.errors",),
    "mambaeye.geometry": ("mambaeye.geometry", *BATCH),
    "mambaeye.ops": ("mambaeye.ops", "mambaeye.geometry", "mambaeye.errors"),
    "mambaeye.encoders": ("mambaeye.encoders", *BELOW),
    "mambaeye.policies": ("mambaeye.policies", *BELOW),
    "mambaeye.locks": ("mambaeye.errors",),
    "mambaeye.loss": ("mambaeye.ops",),
    "mambaeye.optim": ("mambaeye.errors",),
    "mambaeye.flops": ("mambaeye.batch", "mambaeye.encoders.base"),
    "mambaeye.blocks": (*BATCH, "mambaeye.encoders.base", "mambaeye.ops"),
    "mambaeye.temperature": ("mambaeye.errors",),
    "mambaeye.policy_learning": (*BELOW, *WALK, "mambaeye.loss"),
    "mambaeye.rollout": (
        *(*BELOW, "mambaeye.encoders.base", "mambaeye.policies", "mambaeye.loss", "mambaeye.temperature"),
    ),
    "mambaeye.evaluation": (*BELOW, *WALK, "mambaeye.temperature", "mambaeye.evaluation"),
    "mambaeye.plain_files": ("mambaeye.saved_values",),
    "mambaeye.saved_values": (),
    "mambaeye.saved_limits": (),
    "mambaeye.checkpoints": (
        *(*BATCH, "mambaeye.configurable", "mambaeye.encoders", "mambaeye.policies"),
        *("mambaeye.plain_files", "mambaeye.saved_values", "mambaeye.saved_limits"),
    ),
    "mambaeye.command_line": ("mambaeye.command_line", "mambaeye.errors", "mambaeye.saved_values"),
    "mambaeye.weights": (*FILES_OF, "mambaeye.encoders", "mambaeye.errors"),
    "mambaeye.hub": ("mambaeye.encoders.base", "mambaeye.errors", "mambaeye.weights"),
    "mambaeye.exporting": (
        *("mambaeye.exporting", *BELOW, *FILES_OF, "mambaeye.encoders", "mambaeye.policies", "mambaeye.temperature"),
    ),
    "mambaeye.contracts": MODEL,
    "mambaeye.module": (
        *(*MODEL, *FILES_OF, "mambaeye.contracts", "mambaeye.blocks", "mambaeye.flops", "mambaeye.optim"),
        *("mambaeye.suiting", "mambaeye.temperature"),
    ),
    "mambaeye.suiting": ("mambaeye.encoders.base", "mambaeye.errors", "mambaeye.evaluation"),
    "mambaeye.calibrating": (
        *(*BATCH, "mambaeye.checkpoints", "mambaeye.contracts", "mambaeye.module", "mambaeye.temperature"),
    ),
    "datamodules": (
        *("datamodules", *BATCH, "mambaeye.geometry", *WRITING),
        *("mambaeye.contracts", "mambaeye.failures"),
    ),
    "callbacks.plots": ("callbacks.plots", *BATCH, "mambaeye.geometry", "mambaeye.evaluation", "mambaeye.atomic"),
    "callbacks.run": ("callbacks.run", *BATCH, *WRITING, "mambaeye.contracts", "mambaeye.checkpoints"),
    "callbacks.run.calibration": (
        *("callbacks.run", "mambaeye.errors", "mambaeye.calibrating", "mambaeye.temperature"),
    ),
    "callbacks": ("callbacks", *BATCH, *CONTRACTS, "mambaeye.geometry", "mambaeye.atomic"),
}  # fmt: skip
# heavy or foreign packages, and the files that may import them
ONLY_IN = {
    "lightning": (
        "mambaeye.module",
        "mambaeye.contracts",
        "mambaeye.command_line",
        "mambaeye.calibrating",
        "datamodules.datamodule",
        "datamodules.calibration",
        "callbacks.run",
        "callbacks.reports",
    ),
    "torchmetrics": ("mambaeye.evaluation.metrics",),
    "mamba_ssm": ("mambaeye.ops.kernels",),
    "causal_conv1d": ("mambaeye.ops.kernels",),
    "onnx": ("mambaeye.exporting",),
    "onnxruntime": ("mambaeye.exporting",),
    "huggingface_hub": ("mambaeye.hub", "mambaeye.weights.files"),
    "selective_scan_cuda": ("mambaeye.ops.kernels",),
    "timm": ("mambaeye.encoders.naflex_vit",),
    "webdataset": ("datamodules",),
    "urllib3": ("datamodules.storage.web",),
    "fsspec": ("datamodules.storage.objects",),
    "matplotlib": ("callbacks",),
    "tensorboard": ("callbacks",),
}


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import absolutely"
            assert node.module is not None
            of_module = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            names |= of_module or {node.module}
    return names


def below(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_follow_the_house(path: Path) -> None:
    name, names = module_name(path), imported(path)
    room = max((room for room in MAY_IMPORT if below(name, (room,))), key=len)
    ours = {other for other in names if other.split(".")[0] in (*PACKAGES, "train", "benchmarks")}
    assert {other for other in ours if not below(other, MAY_IMPORT[room])} == set()
    for package, allowed in ONLY_IN.items():
        if any(below(other, (package,)) for other in names):
            assert below(name, allowed), f"{name} imports {package}"


def test_encoders_and_policies_do_not_know_each_other() -> None:
    for path in FILES:
        if path.parts[:2] in (("mambaeye", "encoders"), ("mambaeye", "policies")):
            siblings = {name for name in imported(path) if below(name, ("mambaeye.encoders", "mambaeye.policies"))}
            assert siblings <= {f"mambaeye.{path.parts[1]}.base"}, path


def test_there_is_no_circle() -> None:
    graph = {name: imported(path) & MODULES.keys() - {name} for name, path in MODULES.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert len(order) == len(MODULES)


def test_every_file_is_reached() -> None:
    assert {path.parts[0] for path in FILES} == set(PACKAGES)
    assert len(FILES) > 60
    assert {path.parts[1] for path in FILES if path.parts[0] == "mambaeye" and len(path.parts) > 2} >= {
        "geometry", "ops", "encoders", "policies", "evaluation",
    }  # fmt: skip


def test_the_public_names_are_cheap() -> None:
    """In a process of its own: neither lightning nor torchmetrics, nor what draws."""
    heavy = "{'lightning', 'torchmetrics', 'tensorboard', 'matplotlib', 'cv2', 'webdataset', 'jsonargparse'}"
    heavy += " | {'onnx', 'onnxruntime', 'huggingface_hub', 'timm', 'torchvision'}"
    code = f"import sys, mambaeye; print(sorted(mambaeye.__all__), ({heavy}) & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    names = ["EncoderConfig", "MambaEye", "from_pretrained", "information_ratio", "load", "load_published"]
    assert ran.stdout.strip() == f"{[*names, 'push_to_hub', 'save', 'scheduled_cross_entropy']} set()"
