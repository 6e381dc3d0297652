"""Errors a user can cause or must act on. The command line prints their message as one line and exits with code 2."""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceMemoryError",
    "InputError",
    "MissingExtraError",
    "NonFiniteLossError",
    "OutOfMemoryError",
    "require",
]

from types import ModuleType


class InputError(ValueError):
    """Something the user gave cannot be used; the message names it, what was given and what is accepted."""


class ConfigError(InputError):
    """A configuration value is unknown or out of range."""


class DataError(InputError):
    """A data file or array is missing, corrupt or of the wrong form; the message names the file or the row."""


class DeviceMemoryError(InputError):
    """A device has not enough memory; the message says how much was needed for what, and which limit to lower."""


class CheckpointError(InputError):
    """A model or checkpoint file is missing, truncated, altered or of another form."""


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message holds the command that installs it."""


class NonFiniteLossError(RuntimeError):
    """A loss term became NaN or infinite; the message names the term, the step and the last good checkpoint."""


class OutOfMemoryError(RuntimeError):
    """A training step does not fit into memory; the message says what it needs, what there is, and a batch that fits."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which command installs it.

    Args:
        module: Name to import, e.g. ``"onnxruntime"``.
        extra: The extra of this package that brings it, e.g. ``"onnx"``.

    Raises:
        MissingExtraError: The module is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise  # the module is there and one of its own dependencies is not
        raise MissingExtraError(f"{module} is not installed; install it with: pip install 'iiae_fast[{extra}]'") from error
