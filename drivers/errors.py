"""The one error a user sees: a line that says what is wrong, where, and what to do."""


class UserError(Exception):
    """Something the user can mend: a file, a field, a device, an argument.

    The message names it, says what was expected and what to do. The command line prints that one line and
    leaves with exit code 2; nothing moves.
    """


class DeviceError(UserError):
    """A camera or an arm that cannot be opened, does not answer, or answers wrongly."""
