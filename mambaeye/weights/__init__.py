"""Weights in files, read without running code; python -m mambaeye.weights inspect FILE says what a file is."""

from mambaeye.weights.files import HEAD, download, init_from, load, require_own_sizes, save
from mambaeye.weights.fitting import require_fit
from mambaeye.weights.published import load_published

__all__ = ["HEAD", "download", "init_from", "load", "load_published", "require_fit", "require_own_sizes", "save"]
