"""Inspection of a file of weights: does it hold all of an encoder's tensors and no other? Reading runs no code."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mambaeye.checkpoints import MODEL, checkpoint_in, encoder_of, is_of_run
from mambaeye.encoders.base import Encoder
from mambaeye.errors import InputError
from mambaeye.weights.files import CONFIG, WEIGHTS, encoder_tensors, local_path, read_description
from mambaeye.weights.fitting import Difference, blank, differences
from mambaeye.weights.published import published_in
from mambaeye.weights.tensor_files import read_content, read_tensors, tensors_in


@dataclass(frozen=True)
class Inspection:
    """Findings about a file, or a folder."""

    kind: str
    """Kind of file, in words."""
    tensors: Mapping[str, Tensor]
    """The encoder's, by our names where these are known."""
    description: Mapping[str, Any] | None = None
    """Description that builds the encoder: class_path and init_args; None where nothing tells."""
    problem: str | None = None
    """Why the tensors could not be compared with an encoder; None if they were."""
    differences: list[Difference] = field(default_factory=list)
    """Tensors that are not the encoder's."""
    others: list[str] = field(default_factory=list)
    """Contents besides the encoder."""

    @property
    def fits(self) -> bool:
        """Tell whether the tensors are known to be all of an encoder's and no other."""
        return self.problem is None and not self.differences

    def lines(self) -> Iterator[str]:
        """Yield what a person wants to know."""
        yield self.kind
        if self.description is not None:
            yield f"  encoder  {self.description['class_path']}"
            yield f"  sizes    {', '.join(f'{name} {value}' for name, value in self.description['init_args'].items())}"
        parameters = sum(tensor.numel() for tensor in self.tensors.values())
        dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in self.tensors.values()})
        yield f"  weights  {parameters:,} parameters, {len(self.tensors)} tensors, {' and '.join(dtypes) or 'none'}"
        if self.others:
            yield f"  besides  {', '.join(self.others)}"
        if self.fits:
            yield "  fits     yes: all of the encoder's tensors, in its shapes, and no other"
        elif self.problem is not None:
            yield f"  fits     no: {self.problem}"
        else:
            yield f"  fits     no: tensors that differ, {len(self.differences)} in all"
            yield from table(self.differences)


def inspect(source: str | Path) -> Inspection:
    """Return what a file is.

    Args:
        source: a published file, a checkpoint, a .safetensors file, a folder that save wrote, or
            hf://OWNER/REPOSITORY[@REVISION]/FILE for a file on the Hugging Face hub.

    Raises:
        InputError: it cannot be read as tensors.
    """
    path = local_path(str(source))
    if path.name == WEIGHTS and (path.parent / CONFIG).exists():  # a folder's two files are one
        path = path.parent
    if path.is_dir():
        description = read_description(path / CONFIG)
        return compared("a folder that mambaeye.save wrote", read_tensors(path / WEIGHTS), description, path, [])
    content = read_content(path)
    return of_run(content, path) if is_of_run(content) else of_others(content, path)


def of_run(content: dict[str, Any], path: Path) -> Inspection:
    """Inspect what a run's checkpoint holds."""
    checkpoint = checkpoint_in(content, str(path))
    version = "" if checkpoint is content else " of version 0.1"  # which is not left as it is
    others = [f"the names of {len(classes)} classes"] if (classes := checkpoint.get("classes")) else []
    if policy := checkpoint[MODEL].get("policy"):
        others.append(f"the policy {policy['class_path']}")
    return compared(
        f"a checkpoint of a MambaEye run{version}, saved after {checkpoint['global_step']} optimizer steps",
        encoder_tensors(tensors_in(checkpoint, path)),
        encoder_of(checkpoint),
        path,
        others,
    )


def of_others(content: Any, path: Path) -> Inspection:
    """Inspect what a file holds that is no checkpoint of a run: published weights, or tensors of another kind."""
    tensors = tensors_in(content, path)
    others = [str(name) for name in content if content[name] is not tensors] if content is not tensors else []
    try:
        found = published_in(tensors, str(path))
    except InputError as error:
        return Inspection("weights in a published layout", tensors, problem=str(error), others=others)
    if found is None and (described := of_known_names(tensors)) is not None:
        kind = f"weights of {described['class_path'].rpartition('.')[2]}, whose shapes tell its sizes"
        return compared(kind, encoder_tensors(tensors), described, path, others)
    if found is None:
        problem = "nothing in it tells what encoder it is of, as a config.json beside it would"
        return Inspection("tensors in a layout that is not known here", tensors, problem=problem, others=others)
    system, published = found
    kind = f"weights of {system.__name__} in its authors' layout"
    description = {"class_path": system.class_path(), "init_args": published.settings}
    return compared(kind, published.tensors, description, path, others)


def of_known_names(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return what builds the encoder whose own names and shapes these are, if these tell; None otherwise."""
    for system in Encoder.defined_subclasses():
        if (settings := system.settings_in(encoder_tensors(tensors))) is not None:
            return {"class_path": system.class_path(), "init_args": settings}
    return None


def compared(
    kind: str, tensors: Mapping[str, Tensor], description: Mapping[str, Any], path: Path, others: list[str]
) -> Inspection:
    """Compare tensors with the encoder that is described, which is built on the meta device and takes no memory."""
    try:
        encoder = blank(description, tensors, str(path))
    except InputError as error:
        return Inspection(kind, tensors, description, problem=str(error), others=others)
    return Inspection(kind, tensors, description, differences=differences(encoder, tensors), others=others)


def table(rows: list[Difference]) -> Iterator[str]:
    """Yield a heading, and a line for each difference."""
    lines = [("tensor", "in the file", "in the encoder")]
    lines += [(row.name, shown(row.found, "missing"), shown(row.expected, "unexpected")) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "    " + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()


def shown(shape: tuple[int, ...] | None, without: str) -> str:
    """Return a shape as text; a scalar's is ()."""
    return without if shape is None else str(shape)
