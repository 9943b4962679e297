"""The three ways a run ends early on purpose. `main` turns them into exit codes.

Every other exception is a bug or a broken machine and keeps its traceback.
"""


class UserError(ValueError):
    """The user's mistake in config, data or checkpoint; the message is all they see.

    One line: the field or file, the value found, and what would be right. Exit code 2.
    """


class NonFinite(Exception):
    """Too many non-finite updates in a row; starting again would not help. Exit 70."""


class Preempted(Exception):
    """Asked to stop; the state is saved, the same command continues. Exit 75."""
