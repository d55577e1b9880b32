"""Errors that running engines share."""

from dsf.shell.errors import CommandFailed, UserError


class EngineDied(CommandFailed):
    """A backend stopped answering or one of its processes died. One line; nothing of it is left running."""


class BackendUnavailable(UserError):
    """The asked-for backend cannot run here; the message says what would make it run."""
