"""From arguments to a command: all commands under one parser, and its errors in one line."""

from __future__ import annotations

__all__ = ["Command", "UsageError", "parse"]

import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Protocol, Union

import tyro

from iiae_fast import presets
from iiae_fast.cli.bench import Bench
from iiae_fast.cli.codes import Embed, Search
from iiae_fast.cli.data import Data
from iiae_fast.cli.demo import Demo
from iiae_fast.cli.deploy import Export, ImportOfficial
from iiae_fast.cli.evaluate import Evaluate
from iiae_fast.cli.report import Report
from iiae_fast.cli.train import Train
from iiae_fast.cli.translate import Translate
from iiae_fast.errors import InputError
from iiae_fast.version import __version__


class UsageError(InputError):
    """The command line cannot be understood."""


class Command(Protocol):
    """A parsed command."""

    def run(self) -> int:
        """Do it; the exit code."""


_COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "evaluate": Evaluate,
    "translate": Translate,
    "embed": Embed,
    "search": Search,
    "export": Export,
    "report": Report,
    "import-official": ImportOfficial,
    "data": Data,
    "bench": Bench,
}
_TRAIN = "Train a preset: iiae train PRESET [options]. Every setting of the preset can be overridden."


def _subcommand(name: str, target: Any, **options: Any) -> Any:
    return Annotated[target, tyro.conf.subcommand(name, prefix_name=False, **options)]


def _grammar(image_size: int | None) -> Any:
    """The type that tyro parses: ``train`` has one subcommand for each preset, with its values at that size as defaults."""
    trains = tuple(
        _subcommand(name, Train, default=Train.of(name, image_size), description=f"Train the preset {name}.")
        for name in presets.names()
    )
    commands = (_subcommand(name, command) for name, command in _COMMANDS.items())
    members = (_subcommand("train", _union(trains), description=_TRAIN), *commands)
    return _union(members)


def _union(members: tuple[Any, ...]) -> Any:
    return Union[members]  # noqa: UP007 (a union of as many types as there are at run time)


def parse(arguments: list[str]) -> Command | None:
    """Fill the command that ``arguments`` ask for; None when help or the version was printed instead.

    Raises:
        UsageError: They cannot be understood.
        ConfigError: An unknown preset.
    """
    if arguments == ["--version"]:
        print(__version__)
        return None
    if arguments[:1] == ["bench"]:
        return Bench(tuple(arguments[1:]))  # reads its own options
    if len(arguments) > 1 and arguments[0] == "train":
        if not arguments[1].startswith("-"):
            presets.get(arguments[1])  # names an unknown one, and those there are
        elif not {"-h", "--help"} & set(arguments):
            raise UsageError(f"name the preset first: iiae train PRESET [options]; presets are {', '.join(presets.names())}")
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return _tyro(arguments)
    except SystemExit as exit:
        if not exit.code:
            return None
    # Once more on an endless line, since tyro breaks its message at the terminal's edge, within words if need be; and with a
    # UTF-8 stdout, by which it chooses how to draw its box.
    with (
        _columns(100_000),
        contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")),
        contextlib.redirect_stderr(io.StringIO()) as captured,
        contextlib.suppress(SystemExit),
    ):
        _tyro(arguments)
    asked = ["iiae", *arguments[: 2 if arguments[:1] == ["train"] else 1]]
    asked = [word for word in asked if word in {"iiae", "train", *_COMMANDS, *presets.names()}]
    raise UsageError(f"{_condense(captured.getvalue())} (see {' '.join(asked)} --help)")


def _tyro(arguments: list[str]) -> Command:
    config = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
    grammar = _grammar(_image_size(arguments) if arguments[:1] == ["train"] else None)
    command: Command = tyro.cli(grammar, prog="iiae", description=_DESCRIPTION, args=arguments, config=config)
    return command


def _image_size(arguments: Sequence[str]) -> int | None:
    """The value of ``--image-size``, which decides the defaults of other options; None where it is absent or no number."""
    for option, value in zip(arguments, [*arguments[1:], ""]):
        name, equals, attached = option.partition("=")
        value = attached if equals else value
        if name in ("--image-size", "--image_size") and value.isdecimal():
            return int(value)
    return None


_DESCRIPTION = (
    "Interaction Information Auto-Encoder: learn what paired images or features of two domains share, retrieve and translate "
    "across them, deploy. Start with: iiae demo"
)


@contextlib.contextmanager
def _columns(count: int) -> Iterator[None]:
    """The terminal's width as tyro sees it."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _condense(box: str) -> str:
    """tyro's boxed message in one line: what is wrong, and its first suggestion."""
    lines = [re.sub(r"[│╭╮╰╯─]+", " ", line).strip() for line in box.splitlines()[1:]]
    sections: list[list[str]] = [[]]
    for line in lines:
        if line:
            sections[-1].append(line)
        elif sections[-1]:
            sections.append([])
    message = " ".join(sections[0]).replace("__tyro-dummy-inner__.", "").rstrip(".")
    for section in sections[1:]:
        text = " ".join(section[:2])  # a suggestion's third line explains the option
        if text.startswith(("Perhaps you meant", "Available subcommands")):
            message += f"; {text[0].lower()}{text[1:]}"
    return message
