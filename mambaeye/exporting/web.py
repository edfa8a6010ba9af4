"""The page of an export: its own files, and ONNX Runtime Web, packed in the project, so that neither needs npm.

onnxruntime_web/ has what the page needs of the npm package onnxruntime-web 1.30.0, unchanged but for the address of a
source map, with its licence and the notices of what it is built of; the one that is large is compressed.
"""

import gzip
from importlib.resources import files
from pathlib import Path

PACKED = ".gz"
FOLDERS = {"page": ".", "onnxruntime_web": "ort"}  # here, and in the export


def write_page(folder: Path) -> None:
    """Write index.html and all that it needs into a folder, so that it works without a network."""
    for source, target in FOLDERS.items():
        (folder / target).mkdir(exist_ok=True)
        for file in (files("mambaeye.exporting") / source).iterdir():
            content = file.read_bytes()
            if file.name.endswith(PACKED):
                content = gzip.decompress(content)
            (folder / target / file.name.removesuffix(PACKED)).write_bytes(content)
