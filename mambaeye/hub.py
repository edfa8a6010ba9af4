"""Encoders to and from the Hugging Face hub, by huggingface_hub's own mixin, which is imported when it is needed."""

import shutil
from pathlib import Path
from typing import Any

from mambaeye.encoders.base import Encoder
from mambaeye.errors import InputError
from mambaeye.weights import load, save
from mambaeye.weights.files import CONFIG, WEIGHTS


def from_pretrained(name: str | Path, **options: Any) -> Encoder:
    """Return the encoder of a folder that save or export wrote, or of a repository on the hub, in evaluation.

    What is read holds tensors and plain values, and runs no code.

    Args:
        name: the folder, or OWNER/REPOSITORY.
        options: of huggingface_hub's mixin, for a repository: revision, token, cache_dir, force_download,
            local_files_only.

    Raises:
        InputError: there is none, it cannot be had, or is no encoder of this project.
    """
    if Path(name).is_dir():
        return load(name).eval()
    if str(name).count("/") != 1 or str(name).startswith((".", "/")):
        raise InputError(f"{name} is no folder, and no name on the hub: give a folder, or OWNER/REPOSITORY")
    kind = hub_class(f"{name} is no folder here, and on the hub it")
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        encoder: Encoder = kind.from_pretrained(str(name), **options).encoder
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        raise InputError(f"{name} cannot be had from the hub: {str(error).strip().splitlines()[0]}") from None
    return encoder.eval()


def push_to_hub(source: Encoder | str | Path, repo_id: str, **options: Any) -> str:
    """Write an encoder, or all of a folder that export wrote, into a repository on the hub, and return its address.

    Args:
        source: the encoder, or the folder.
        repo_id: OWNER/REPOSITORY, made if need be.
        options: of huggingface_hub's mixin: private, token, branch, commit_message, create_pr and others.

    Raises:
        InputError: the folder has no encoder, or huggingface_hub is not installed.
    """
    kind = hub_class("push_to_hub")
    if not isinstance(source, Encoder):
        load(source)  # what could not be loaded again is not pushed
        if not Path(source).is_dir():
            raise InputError(f"{source} is no folder: give one that export wrote, or mambaeye.load({str(source)!r})")
    address: str = kind(source).push_to_hub(repo_id, **options)
    return address


def hub_class(what: str) -> Any:
    """Return huggingface_hub's mixin with our way to write and read: .encoder is what it holds.

    Raises:
        InputError: huggingface_hub is not installed; what begins the sentence.
    """
    try:
        from huggingface_hub import ModelHubMixin, hf_hub_download
    except ImportError:
        raise InputError(f"{what} needs the Hugging Face client: pip install huggingface_hub") from None

    class OnHub(ModelHubMixin, library_name="mambaeye", pipeline_tag="image-classification"):
        def __init__(self, encoder: Encoder | str | Path) -> None:
            self.encoder = encoder

        def _save_pretrained(self, save_directory: Path) -> None:
            if isinstance(self.encoder, Encoder):
                save(self.encoder, save_directory)
            else:
                shutil.copytree(self.encoder, save_directory, dirs_exist_ok=True)

        @classmethod
        def _from_pretrained(cls, *, model_id: str, **options: Any) -> Any:
            names = {"revision", "cache_dir", "force_download", "local_files_only", "token"}
            asked = {name: value for name, value in options.items() if name in names}
            for name in (WEIGHTS, CONFIG):
                path = hf_hub_download(model_id, name, **asked)
            return cls(load(Path(path).parent))

    return OnHub
