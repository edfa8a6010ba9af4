"""The one exception for mistakes that a user can mend."""


class InputError(ValueError):
    """A user's mistake: the message says in one sentence what is wrong, where, and how to mend it.

    train.py prints the message alone, without a traceback; everything else that fails keeps its traceback.
    """
