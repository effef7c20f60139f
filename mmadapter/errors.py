"""The one exception that means: what the user gave cannot be used."""


class InputError(Exception):
    """Bad input. The message says what is wrong, where, what was given, what is allowed and how to mend it.

    The entries print the message without a traceback and exit with status 2.
    """
