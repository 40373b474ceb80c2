"""The errors dlmon raises, each with a message that says what to do next."""


class DlmonError(Exception):
    """Base of every error that dlmon raises on purpose."""


class SegmentError(DlmonError):
    """Say that a file is not a segment this release can read, or cannot be made.

    Attributes:
        reason: A word from a closed set (`REASONS`), fit for a metric label.
    """

    REASONS = ("io", "owner", "format", "version", "bounds", "info", "not_ready", "limit")

    def __init__(self, message: str, reason: str = "format") -> None:
        super().__init__(message)
        self.reason = reason


class ConfigError(DlmonError):
    """Say what is wrong in a configuration file: file, line, key, value and what is allowed."""


class UsageError(DlmonError):
    """Say what is wrong in a command line; the command exits with status 2."""
