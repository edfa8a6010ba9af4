"""Weights as the authors of systems published them: which system's they are, and the encoder with them."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mambaeye.encoders.base import Encoder, PublishedWeights
from mambaeye.errors import InputError
from mambaeye.weights.fitting import blank, build, load_matching, require_fit
from mambaeye.weights.tensor_files import read_tensors


def load_published(source: str | Path | Mapping[str, Tensor], system: str | None = None, **settings: Any) -> Encoder:
    """Return an encoder with the weights that the authors of a system published, of the sizes that the shapes tell.

    Args:
        source: path of a file such as mambaeye_tiny.pt, or its state dict.
        system: what it must be of, such as "deit" or "vim"; None for whatever it is of, by its layout alone.
        settings: arguments of the encoder's constructor that shapes do not tell, such as heads of a narrow ViT.

    Returns:
        The encoder, on the CPU, in float32, in eval mode. One of whole canvases has the authors' `network`, which maps
        images (B, 3, H, W), or clips (B, 3, T, H, W), normalised already, to logits.

    Raises:
        InputError: the file cannot be read as plain tensors, its keys or shapes are no known system's, or another's
            than was asked for; or a setting is none of the encoder's, or not as the shapes tell.
    """
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    if system is not None and system not in layouts():
        raise InputError(f"no published system is called {system!r}: choose one of {', '.join(layouts())}")
    tensors = source if isinstance(source, Mapping) else read_tensors(Path(source))
    found = published_for(system, tensors, where, settings) or published_in(tensors, where)
    if found is None:
        raise InputError(f"{where} has the layout of no published system that is known here: {', '.join(layouts())}")
    kind, published = found
    if system is not None and kind.published_as != system:
        raise InputError(f"{where} is laid out as {kind.published_as}, not {system}")
    require_untold(kind, published.settings, settings, where)
    description = {"class_path": kind.class_path(), "init_args": published.settings | settings}
    # before anything is made, for shapes that do not belong together may tell of more than a file holds
    require_fit(blank(description, published.tensors, where), published.tensors, where)
    encoder = build(description, where)
    load_matching(encoder, published.tensors, where)
    return encoder.eval()


def require_untold(kind: type[Encoder], told: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> None:
    """Require that settings are an encoder's, and no other than its weights tell.

    Raises:
        InputError: they are not; where names the file.
    """
    known = inspect.signature(kind.__init__).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values())
    for name, value in settings.items():
        if name not in known and name not in told and not takes_any:
            raise InputError(f"{kind.__name__} has no setting {name}: leave it out")
        if told.get(name, value) != value:
            raise InputError(f"{where} has {name} {told[name]}, and {value} is asked for: leave {name} out")


def published_for(
    system: str | None, tensors: Mapping[str, Tensor], where: str, settings: Mapping[str, Any]
) -> tuple[type[Encoder], PublishedWeights] | None:
    """Return the encoder of a system that is asked for, and its weights in our terms; None if they are no such.

    Raises:
        InputError: as from_published_for.
    """
    for kind in Encoder.defined_subclasses():
        if system and kind.published_as == system and (found := kind.from_published_for(tensors, where, settings)):
            return kind, found
    return None


def published_in(tensors: Mapping[str, Tensor], where: str) -> tuple[type[Encoder], PublishedWeights] | None:
    """Return which system's authors lay out their weights like this, and these in our terms; None if nobody does.

    Raises:
        InputError: somebody does, and something is wrong with them; where names the file.
    """
    for system in Encoder.defined_subclasses():
        if (published := system.from_published(tensors, where)) is not None:
            return system, published
    return None


def layouts() -> list[str]:
    """Return the names of the layouts that are known, in alphabetical order."""
    return sorted({system.published_as for system in Encoder.defined_subclasses() if system.published_as})
