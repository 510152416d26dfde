"""Errors that are the user's to mend."""


class UserError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence that says what is wrong, with what value, and what to do. The
    command line prints it without a traceback and exits with code 2.
    """


class DivergedError(RuntimeError):
    """Training reached NaN or Inf; the message names the last good checkpoint."""
