"""The parts of a checkpoint that are exported, read without running code."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

import mambaeye.encoders
import mambaeye.policies  # noqa: F401  # both define what a checkpoint may name
from mambaeye.checkpoints import MODEL, Description, read_checkpoint
from mambaeye.encoders.base import CausalEncoder, Encoder
from mambaeye.errors import InputError
from mambaeye.policies.base import Policy
from mambaeye.saved_values import misfits, shown
from mambaeye.temperature import TEMPERATURE, Temperature, temperature_in
from mambaeye.weights import load, require_fit

IN_CHECKPOINT = "policy."  # what stands before the policy's names in a module


class Trained(NamedTuple):
    """A model that can be exported, on the CPU and in evaluation."""

    encoder: CausalEncoder
    policy: Policy | None
    temperature: Temperature | None
    classes: list[str]
    """Names; the indices where the checkpoint has none."""
    checkpoint: dict[str, Any]


def read_trained(path: str | Path) -> Trained:
    """Read a run's checkpoint.

    Raises:
        InputError: it is no such checkpoint, is damaged, or has an encoder that is not exported.
    """
    checkpoint = read_checkpoint(path, "--ckpt_path")
    encoder = require_exportable(load(path))
    temperature = temperature_in(checkpoint[TEMPERATURE]) if TEMPERATURE in checkpoint else None
    classes = checkpoint.get("classes") or [str(index) for index in range(encoder.num_classes)]
    if len(classes) != encoder.num_classes:
        raise InputError(f"{path} is damaged: it names {len(classes)} classes, and its head has {encoder.num_classes}")
    encoder.eval()
    return Trained(encoder, policy_of(checkpoint, encoder, str(path)), temperature, classes, checkpoint)


def require_exportable(encoder: Encoder) -> CausalEncoder:
    """Return the encoder as one that can be exported glimpse by glimpse.

    Raises:
        InputError: it takes whole canvases, answers once, looks at clips, or does not do the same at every glimpse.
    """
    if not isinstance(encoder, CausalEncoder):
        does = "takes whole canvases" if encoder.takes == "canvas" else "answers once, after the last glimpse"
        raise InputError(
            f"export writes a step of one glimpse, and {type(encoder).__name__} {does}: give --ckpt_path a checkpoint "
            f"of an encoder with a carried state, such as MambaEye"
        )
    if encoder.axes != 2:
        raise InputError(
            f"export writes a step over images, and positions of this encoder have {encoder.axes} axes: give "
            f"--ckpt_path a checkpoint that was trained on images"
        )
    if encoder.channels != 3:
        raise InputError(
            f"export writes a step over RGB images, and this encoder looks at {encoder.channels} channels: give "
            f"--ckpt_path a checkpoint that was trained on RGB"
        )
    if encoder.settings.get("registers_every"):
        raise InputError(
            "export writes one step for all glimpses, and encoder.registers_every puts tokens between them: give "
            "--ckpt_path a checkpoint without registers"
        )
    return encoder


def policy_of(checkpoint: dict[str, Any], encoder: CausalEncoder, where: str) -> Policy | None:
    """Return the policy that a checkpoint holds, with its weights; None where it has none.

    Raises:
        InputError: it names a class that is not defined, values that no policy has, or weights that do not fit.
    """
    description = checkpoint[MODEL].get("policy")
    if description is None:
        return None
    for name, value in misfits("model.policy", description, Description):
        raise InputError(f"{where} is damaged: its {shown(name)} cannot be {shown(value)}")
    kind = Policy.defined(description["class_path"], where, "--model.policy")
    try:
        policy = kind(**description["init_args"])
    except TypeError as error:
        raise InputError(f"{where} does not hold a policy's sizes: {error}") from None
    policy.suit(encoder.feature_dim, encoder.num_classes, encoder.axes)
    state = policy_tensors(checkpoint["state_dict"])
    require_fit(policy, state, where)
    policy.load_state_dict(state)
    return policy.eval()


def policy_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the policy's part of a checkpoint's state dict."""
    return {
        name.removeprefix(IN_CHECKPOINT): tensor for name, tensor in tensors.items() if name.startswith(IN_CHECKPOINT)
    }
