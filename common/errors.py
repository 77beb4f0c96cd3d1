"""The one exception that entry points turn into a sentence on stderr and exit code 2."""


class InputError(ValueError):
    """What the user gave can't be used. The message is one sentence: what, where, and what to do about it."""
