"""Policies, one file each. Importing the package defines them all, for the command line to find by class name."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
