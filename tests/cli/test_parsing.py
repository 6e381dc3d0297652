"""Help, usage errors in one line, and the settings that options make."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from iiae_fast import __version__, presets
from iiae_fast.cli import main
from iiae_fast.cli.parsing import parse
from iiae_fast.cli.train import Train
from iiae_fast.errors import ConfigError

COMMANDS = (
    "train", "demo", "evaluate", "translate", "embed", "search", "export", "report", "import-official", "data", "bench",
)  # fmt: skip


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr, which must be one line, with nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    return captured.err.strip()


def train_command(*options: str) -> Train:
    command = parse(["train", *options])
    assert isinstance(command, Train)
    return command


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"• {command} " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    captured = capsys.readouterr()
    assert f"usage: iiae {command}" in captured.out
    assert captured.err == ""
    # An option without a docstring shows as its default alone.
    for line, following in zip(captured.out.splitlines(), captured.out.splitlines()[1:]):
        if line.strip("│ ").startswith("--"):
            explained = line.strip("│ ").split("  ")[-1] if "  " in line.strip("│ ") else following.strip("│ ")
            assert not explained.startswith("(default"), line


@pytest.mark.parametrize("preset", presets.names())
def test_train_help_shows_the_presets_own_values(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", preset, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    settings = presets.get(preset)
    for option, value in (
        ("--model.n-shared", settings.model.n_shared),
        ("--objective.elbo-weight", settings.objective.elbo_weight),
        ("--optim.epochs", settings.optim.epochs),
        ("--data.kind", settings.data.kind),
    ):
        assert f"(default: {value})" in text[text.index(option + " ") :].partition(" --")[0]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "{train, demo, evaluate"),
        (["foo"], "foo; available subcommands: train, demo"),
        (["train"], "digits-cdcb, mnist-cdcb, facades"),
        (["train", "foo"], "unknown preset 'foo'; accepted are digits-cdcb, mnist-cdcb"),
        (["train", "--run-dir", "x", "maps"], "name the preset first"),
        (["train", "maps", "--model.n-sharde", "3"], "--model.n-sharde, 3; perhaps you meant: --model.n-shared INT"),
        (["train", "maps", "--model.n-shared", "x"], "--model.n-shared: invalid literal for int() with base 10: 'x'"),
        (["train", "maps", "--model.n-shared", "-3"], "model: n_shared=-3: accepted is a whole number of at least 1"),
        (["train", "maps", "--model.n-shared"], "--model.n-shared"),
        (["train", "maps", "--objective.name", "foo"], "'foo' for argument '--objective.name'. Expected one of ('iiae'"),
        (["train", "maps", "--image-size", "48"], "image_size=48: accepted is a power of two from 16 to 1024"),
        (["evaluate"], "Missing from iiae evaluate: RUN"),
        (["evaluate", "runs/x", "--metric", "hamming"], "'hamming' for argument '--metric'. Expected one of ('auto', 'sq"),
        (["search", "a.npy"], "QUERIES.npy"),
        (["search", "a.npy", "b.npy", "c.npy"], "Unrecognized options: c.npy"),
        (["export", "runs/x", "--graphs", "foo"], "'foo' for argument '--graphs'. Expected one of ('shared_x'"),
        (["bench", "foo"], "unknown benchmark 'foo'"),
        (["data", "foo"], "unknown data 'foo'; accepted are digits-cdcb"),
    ],
)  # fmt: skip
def test_usage_errors_are_one_line(arguments: Sequence[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    message = one_line(capsys)
    assert message.startswith("iiae: ")
    assert says in message


def test_long_values_survive_a_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = "/".join(["a-long-folder-name"] * 12)
    assert main(["search", "a.npy", "b.npy", path]) == 2
    assert path in one_line(capsys)
    assert main(["search", "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines()[4:])) <= 40  # below the usage line, which tyro never breaks


@pytest.mark.parametrize(
    ("arguments", "pointer"),
    [(["nothing"], "iiae --help"), (["search"], "iiae search --help"), (["train", "maps", "-x"], "iiae train maps --help")],
)
def test_help_is_pointed_to(arguments: list[str], pointer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert one_line(capsys).endswith(f"(see {pointer})")


def test_preset_is_itself_without_options() -> None:
    for name in presets.names():
        assert train_command(name).preset() == presets.get(name)


@pytest.mark.parametrize("options", [("--image-size", "32"), ("--image-size=32",), ("--image_size", "32")])
def test_image_size_gives_the_presets_settings_at_that_size(options: tuple[str, ...]) -> None:
    assert train_command("mnist-cdcb", *options).preset() == presets.get("mnist-cdcb", image_size=32)


def test_help_shows_the_settings_at_an_image_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "mnist-cdcb", "--image-size", "32", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    settings = presets.get("mnist-cdcb", image_size=32)
    for option, value in (("--model.n-shared", settings.model.n_shared), ("--optim.lr", settings.optim.lr)):
        assert f"(default: {value})" in text[text.index(option + " ") :].partition(" --")[0]


def test_overrides_reach_their_place() -> None:
    options = ("--data-root", "here", "--optim.epochs", "7", "--data.no-recolour", "--objective.beta", "2")
    preset = train_command("facades", *options).preset()
    assert preset.data.root == "here"
    assert preset.optim.epochs == 7
    assert not preset.data.recolour
    assert preset.objective.beta == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--image-size", "32", "--model.image-size", "64"), "--image-size 32 and --model.image-size 64 contradict"),
        (("--image-size", "32", "--data.image-size", "64"), "--image-size 32 and --data.image-size 64 contradict"),
        (("--data-root", "a", "--data.root", "b"), "--data-root a and --data.root b contradict"),
        (("--model.image-size", "64"), "images of 64 pixels, the data have 256"),
        (("--image-size", "32", "--model.family", "feature"), "facades has features, no images"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(options: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        train_command("facades", *options).preset()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "maps", "--help"], ["nothing"], ["bench"]])
def test_help_and_usage_errors_need_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from iiae_fast.cli import main; main(sys.argv[1:]); "
        "sys.exit(bool({'torch', 'PIL', 'onnxruntime', 'sklearn', 'jinja2'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


def test_python_m_is_the_same_program(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "iiae_fast", "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, __version__, "")


def test_bench_hands_its_arguments_over(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from iiae_fast.bench import command

    given: list[Sequence[str]] = []

    def measured(arguments: Sequence[str]) -> int:
        given.append(list(arguments))
        return 3

    assert main(["bench"]) == 0
    assert "retrieval" in capsys.readouterr().out
    monkeypatch.setattr(command, "main", measured)
    assert main(["bench", "--quick", "retrieval", "--threads", "2"]) == 3
    assert given == [["--quick", "retrieval", "--threads", "2"]]
