"""A trained encoder, and the policy that leads it, as files that run without this project.

The only importer of onnx, onnxscript and onnxruntime.
"""

from mambaeye.exporting.folder import export

__all__ = ["export"]
