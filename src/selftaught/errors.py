"""Errors a user can act on: one line that names the row, the value and the remedy, and an exit code."""


class SelftaughtError(Exception):
    """Base of every error raised on purpose. The command line prints its message and exits with `exit_code`."""

    exit_code = 1


class InputError(SelftaughtError):
    """A file, key, value or model given by the user cannot be used."""

    exit_code = 2


class NothingToTrainOn(SelftaughtError):
    """Selection kept no example. Every stage computed so far stays on disk."""

    exit_code = 3


class RunLocked(SelftaughtError):
    """Another process holds the run directory."""

    exit_code = 2


class DamagedStage(SelftaughtError):
    """A stored shard is missing, truncated or altered."""

    exit_code = 2


class TrainingDiverged(SelftaughtError):
    """A loss or a gradient norm was not finite. The last good checkpoint stays on disk."""

    exit_code = 1
