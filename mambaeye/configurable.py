"""Modules that remember what they were built with, so that files can say how to build them again."""

import inspect
from collections.abc import Iterator
from typing import Any, Self

from torch import nn

from mambaeye.errors import InputError


class Configurable(nn.Module):
    """A module whose constructor takes plain values.

    Attributes:
        settings: the keyword arguments that build it again, as it was called; a subclass may set others.
    """

    settings: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        module = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(module, *args, **kwargs)
        settings = {
            name: value
            for name, value in bound.arguments.items()
            if name != "self" and bound.signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD
        }
        settings |= {name: value for name, value in kwargs.items() if name not in settings}
        object.__setattr__(module, "settings", settings)  # nn.Module is not ready to set attributes yet
        return module

    @classmethod
    def class_path(cls) -> str:
        """Return the class's import path."""
        return f"{cls.__module__}.{cls.__qualname__}"

    def description(self) -> dict[str, Any]:
        """Return what builds it again, as the command line writes it: class_path and init_args."""
        return {"class_path": self.class_path(), "init_args": dict(self.settings)}

    @classmethod
    def defined_subclasses(cls) -> Iterator[type[Self]]:
        """Yield all classes below this one that are defined so far, whoever defined them."""
        for subclass in cls.__subclasses__():
            yield subclass
            yield from subclass.defined_subclasses()

    @classmethod
    def defined(cls, class_path: str, where: str, flag: str) -> type[Self]:
        """Return the subclass of that import path, which must have been imported: a file must not make us import code.

        Args:
            class_path: what a file says.
            where: the file, for the message.
            flag: which flag names such a class, for the message.

        Raises:
            InputError: no class that is defined so far has that path.
        """
        for subclass in cls.defined_subclasses():
            if subclass.class_path() == class_path:
                return subclass
        raise InputError(
            f"{where} is of {class_path!r}, which is none of the project's own: name it with {flag}, or import it first"
        )
