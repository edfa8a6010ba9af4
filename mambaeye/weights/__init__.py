"""Weights in files, read without running code; python -m mambaeye.weights inspect FILE says what a file is."""

from mambaeye.weights.files import download, init_from, load, load_published, require_fit, save

__all__ = ["download", "init_from", "load", "load_published", "require_fit", "save"]
