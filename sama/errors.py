"""The one exception that a user's mistake raises."""


class InputError(Exception):
    """Bad input from outside: one clear sentence, no traceback; the command exits with code 2."""
