"""The one error a command shows to its user as a single line."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line that names the file or flag, what was found, and the fix. Commands print
    `error: …` to standard error and exit with 2.
    """
