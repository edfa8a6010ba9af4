"""Arguments of the command line that weights bring with them: --model.init_from names a file, which says the rest."""

from typing import Any

from mambaeye.checkpoints import SHARED
from mambaeye.weights.inspection import inspect


def arguments_of_weights(source: str, class_path: str) -> dict[str, Any]:
    """Return the encoder and what the data module shares with it, by their flags' names without dashes.

    Args:
        source: as for init_from.
        class_path: of the encoder that flags or a config name; weights of another bring nothing.

    Returns:
        Nothing where the file does not tell; what is wrong with it, init_from says.

    Raises:
        InputError: the file cannot be read as tensors.
    """
    found = inspect(source)
    if not found.fits or found.description is None:
        return {}
    theirs, asked = (path.rpartition(".")[2] for path in (found.description["class_path"], class_path))
    if theirs != asked:  # the same class may go by several paths
        return {}
    settings = dict(found.description["init_args"])
    shared = {f"data.{name}": settings.pop(name) for name in SHARED if name in settings}
    return {"model.encoder": {"class_path": class_path, "init_args": settings}, **shared}
