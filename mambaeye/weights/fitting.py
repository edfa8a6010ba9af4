"""Encoders built as a file describes them, and whether its tensors are theirs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mambaeye.encoders.base import Encoder
from mambaeye.errors import InputError, NotInstalledError

SHOWN_DIFFERENCES = 8
ROOM = 1000  # tensors that an encoder may have more than a file, so that a message can name those that are missing


class Difference(NamedTuple):
    """A tensor of a state dict that is not as an encoder has it."""

    name: str
    found: tuple[int, ...] | None
    """Its shape; None where it is missing."""
    expected: tuple[int, ...] | None
    """The encoder's; None where the encoder has no such tensor."""

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.name} is missing"
        if self.expected is None:
            return f"{self.name} is unknown"
        return f"{self.name} is {self.found}, not {self.expected}"


def build(description: Mapping[str, Any], where: str) -> Encoder:
    """Return a new encoder of the class and with the arguments that a file says.

    Raises:
        NotInstalledError: a library that the class needs is not there.
        InputError: the class is not defined, or does not take these arguments; where names the file.
    """
    system = Encoder.defined(description["class_path"], where, "--model.encoder")
    try:
        return system(**description["init_args"])
    except NotInstalledError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where} does not hold an encoder's sizes: {error}") from None


def blank(description: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> Encoder:
    """Return the encoder that a file describes on the meta device, where it takes no memory; no more than the file has.

    Raises:
        InputError: as build; or it has more tensors than the file.
    """
    built = 0

    def count(*_: object) -> None:
        nonlocal built
        built += 1
        if built > len(state) + ROOM:
            raise ValueError(f"they make more than the {len(state)} tensors that it has")

    counting = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            return build(description, where)
    finally:
        counting.remove()


def load_matching(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict whose keys and shapes are the model's own; otherwise say which differ and change nothing."""
    require_fit(model, state, where)
    model.load_state_dict(state)


def require_fit(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Check that a state dict has the model's own keys and shapes.

    Raises:
        InputError: it has not; the message lists the differences.
    """
    if different := differences(model, state):
        shown = "; ".join(str(difference) for difference in different[:SHOWN_DIFFERENCES])
        more = f"; and {len(different) - SHOWN_DIFFERENCES} more" if len(different) > SHOWN_DIFFERENCES else ""
        raise InputError(f"{where} does not fit this encoder: {shown}{more}")


def differences(model: nn.Module, state: Mapping[str, Tensor]) -> list[Difference]:
    """Return where a state dict has other keys or shapes than a model: missing ones, unknown ones, other shapes."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return [
        *(Difference(name, None, shape) for name, shape in own.items() if name not in found),
        *(Difference(name, shape, None) for name, shape in found.items() if name not in own),
        *(
            Difference(name, found[name], shape)
            for name, shape in own.items()
            if name in found and found[name] != shape
        ),
    ]
