"""``iiae export`` and ``iiae import-official``: out to ONNX, in from the authors' TensorFlow checkpoints."""

from __future__ import annotations

__all__ = [
    "DEFAULT_GRAPHS",
    "Export",
    "ImportOfficial",
    "as_graph_input",
    "export_graphs",
    "read_parity",
    "run_encoder",
    "show",
]

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from iiae_fast import presets
from iiae_fast.cli.evaluate import default_metric
from iiae_fast.cli.output import percent, print_json, spans, table
from iiae_fast.config import Preset
from iiae_fast.errors import InputError
from iiae_fast.storage import load_json

if TYPE_CHECKING:
    from iiae_fast.data import PairedDataset, Splits
    from iiae_fast.export import Session
    from iiae_fast.model import IIAE

GraphName = Literal[
    "shared_x",
    "shared_y",
    "exclusive_x",
    "exclusive_y",
    "encode_x",
    "encode_y",
    "joint",
    "decode_x",
    "decode_y",
    "x_to_y",
    "y_to_x",
]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
Target = Literal["onnx", "tensorrt", "tensorrt-rtx"]
DEFAULT_GRAPHS: tuple[GraphName, ...] = ("shared_x", "shared_y", "exclusive_x", "exclusive_y", "x_to_y", "y_to_x")
ONNX_DIRECTORY = "onnx"
PARITY_FILE = "parity.json"
_OTHER_DOMAIN = {"shared_x": "shared_y", "shared_y": "shared_x", "encode_x": "encode_y", "encode_y": "encode_x"}
_BATCH = 256


@dataclass(frozen=True)
class Export:
    """Write graphs of a model as ONNX files, run each with ONNX Runtime and compare it with the model; build engines of them.

    Attributes:
        run_dir: A run directory.
        graphs: Which ones.
        to: onnx; or engines too, by tensorrt (for the GPU of this machine) or tensorrt-rtx (for GPUs that need not be there).
        inspect: Instead of a run: an engine to describe, layer by layer. Nothing of it is run.
        compare: Instead of a run: two files of one graph, ONNX or engine, that Polygraphy runs on the same random inputs.
        out: Directory to write GRAPH.onnx, GRAPH.plan and parity.json to; by default RUN/onnx.
        precision: Of weights and activations; int8 is calibrated on training pairs, and without --to for graphs that encode;
            fp8 is for engines.
        input: float32: images (B, C, H, W) in [−1, 1]; uint8: images (B, H, W, C) as files hold them.
        head: What encoders give: mean; normalized (to length 1, for cosine); gaussian ([mean | logvar], for those metrics).
        max_batch: Largest batch of one run.
        batch: Of engines: the smallest batch, the one to tune for, and the largest (default: 1 16 256, cut to --max-batch).
        targets: Of tensorrt-rtx: compute capabilities to build for (default: SM80 SM86 SM89 SM120; of fp8 the last two).
        samples: Test pairs to compare on.
        calibration: Training pairs that int8 ranges are taken from.
        json: Print the comparison as JSON.
    """

    run_dir: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="RUN")]] = None
    graphs: tuple[GraphName, ...] = DEFAULT_GRAPHS
    to: Target = "onnx"
    inspect: Annotated[Path | None, tyro.conf.arg(metavar="ENGINE")] = None
    compare: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="REFERENCE OTHER")] = None
    out: Path | None = None
    precision: Precision = "fp32"
    input: Literal["float32", "uint8"] = "float32"
    head: Literal["mean", "normalized", "gaussian"] = "mean"
    max_batch: int | None = None
    batch: tuple[int, int, int] | None = None
    targets: tuple[str, ...] | None = None
    samples: int = 256
    calibration: int = 256
    json: bool = False

    def run(self) -> int:
        """Export, verify, print."""
        if sum(given is not None for given in (self.run_dir, self.inspect, self.compare)) != 1:
            raise InputError(
                "give either a run directory, iiae export RUN, or an engine, iiae export --inspect ENGINE, or two files, "
                "iiae export --compare REFERENCE OTHER"
            )
        if self.inspect is not None:
            return self._inspect(self.inspect)
        if self.compare is not None:
            return self._compare(*self.compare)
        assert self.run_dir is not None
        self._check_options()
        return self._export(self.run_dir)

    def _inspect(self, path: Path) -> int:
        from iiae_fast import export
        from iiae_fast.cli import engines

        info = export.inspect_engine(path)
        if self.json:
            print_json(engines.describe(info))
        else:
            engines.inspect(info)
        return 0

    def _compare(self, reference: Path, other: Path) -> int:
        from iiae_fast import export
        from iiae_fast.cli import engines

        found = export.compare(reference, other)
        if self.json:
            print_json({"outputs": [dataclasses.asdict(difference) for difference in found]})
        else:
            engines.show_differences(reference, other, found)
        return 0

    def _check_options(self) -> None:
        for name in ("samples", "calibration"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: accepted is a whole number of at least 1")
        if self.to == "onnx":
            for name in ("batch", "targets"):
                if getattr(self, name) is not None:
                    raise InputError(f"--{name} is of engines: give --to tensorrt or --to tensorrt-rtx too")
            if self.precision == "fp8":
                raise InputError("--precision fp8 is of engines: give --to tensorrt or --to tensorrt-rtx too")
        else:
            from iiae_fast.export.flavors import open_flavor

            open_flavor(self.to)  # say that it is missing before an export, not after

    def _export(self, run_dir: Path) -> int:
        from iiae_fast import data
        from iiae_fast.cli import engines
        from iiae_fast.cli.runs import open_model, open_preset, record_command

        model, preset = open_model(run_dir, "cpu"), open_preset(run_dir)
        splits = data.load(preset.data)
        out = self.out or run_dir / ONNX_DIRECTORY
        found = export_graphs(
            model,
            preset,
            splits,
            out,
            self.graphs,
            self.precision,
            input=self.input,
            head=self.head,
            max_batch=self.max_batch,
            samples=self.samples,
            calibration=self.calibration,
            run=run_dir.resolve().name,
            target="cpu" if self.to == "onnx" else "tensorrt",
        )
        if self.to != "onnx":
            compared = _graph_inputs(splits.test, self.samples, self.input)
            found["engines"] = engines.build_engines(model, out, self.graphs, self.to, self.batch, self.targets, compared)
        if self.out is None:
            record_command(run_dir)
        if self.json:
            print_json({"out": str(out), **found})
        else:
            show(found)
            if self.to != "onnx":
                engines.show_engines(found["engines"])
            print(f"written to {out}")
        return 0


def export_graphs(
    model: IIAE,
    preset: Preset,
    splits: Splits,
    out: Path,
    graphs: tuple[GraphName, ...] = DEFAULT_GRAPHS,
    precision: Precision = "fp32",
    *,
    run: str,
    input: Literal["float32", "uint8"] = "float32",
    head: Literal["mean", "normalized", "gaussian"] = "mean",
    max_batch: int | None = None,
    samples: int = 256,
    calibration: int = 256,
    target: Literal["cpu", "tensorrt"] = "cpu",
) -> dict[str, Any]:
    """Write ``GRAPH.onnx`` for each graph, verify it on test pairs, and repeat the retrieval with ONNX Runtime.

    Args:
        model: On the CPU.
        preset: Goes into the files, so that they know their data.
        splits: Test pairs to verify and retrieve with, training pairs to calibrate on.
        out: Directory of the files, and of ``parity.json`` with what is returned.
        graphs: Which ones.
        precision: As for ``export.to_onnx``; or ``"int8"`` or ``"fp8"``, by ``export.quantize``.
        run: Name of the training run, for the files.
        input, max_batch: As for ``export.to_onnx``.
        head: Likewise, of encoders; other graphs have no choice of it.
        samples: Test pairs for verification; retrieval takes them all.
        calibration: Training pairs for int8 and fp8.
        target: What int8 and fp8 are for, as for ``export.quantize``.

    Returns:
        ``"graphs"``: a ``ParityReport`` each, as a dictionary; where the shared encoder of the other domain is among the graphs
        too, with the agreement in its gallery. With both shared encoders among them (and ``head="mean"``) also
        ``"retrieval"``: ``queries`` of both directions, ``top1_agreement`` (the share of them with the same nearest row as by
        the model's codes), ``top10_agreement`` (the mean share of their ten nearest rows, or of all where there are fewer, that
        are the same), and R@1 ``x_to_y`` and ``y_to_x``.

    Raises:
        ParityError: A graph computes something else than the model.
        InputError: Anything that ``to_onnx`` or ``quantize`` refuses, or a graph named twice.
    """
    from iiae_fast import export
    from iiae_fast.export.parity import complete_inputs
    from iiae_fast.storage import save_json

    if len(set(graphs)) < len(graphs) or not graphs:
        raise InputError(f"--graphs {' '.join(graphs)}: name each at most once, and at least one")
    for name, split in (("test", splits.test), ("train", splits.train)):
        if not len(split) and (name == "test" or precision in ("int8", "fp8")):
            raise InputError(
                f"the {name} split is empty: there is nothing to {'compare' if name == 'test' else 'calibrate'} on"
            )
    compared = _graph_inputs(splits.test, samples, input)
    metadata = {"preset": json.dumps(preset.to_dict()), "run": run}
    reports, sessions = [], {}
    for (position,) in spans(len(graphs), 1, "exporting"):
        graph, path = graphs[position], out / f"{graphs[position]}.onnx"
        of_graph = head if export.GRAPHS[graph].kind == "encoder" else "mean"
        if precision == "int8" or precision == "fp8":
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder) / path.name
                export.to_onnx(model, graph, source, "fp32", input, max_batch, of_graph, metadata)
                given = _graph_inputs(splits.train, calibration, input)
                samples_of = complete_inputs(export.load(source, device="cpu"), model, given)
                export.quantize(source, path, samples_of, target, precision)
        else:
            export.to_onnx(model, graph, path, precision, input, max_batch, of_graph, metadata)
        sessions[graph] = export.load(path, device="cpu")
    for (position,) in spans(len(graphs), 1, "verifying"):
        graph = graphs[position]
        gallery = sessions.get(_OTHER_DOMAIN.get(graph, ""))
        reports.append(dataclasses.asdict(export.verify(sessions[graph], model, compared, gallery=gallery)))
    found: dict[str, Any] = {"graphs": reports}
    if "shared_x" in sessions and "shared_y" in sessions and head == "mean":
        found["retrieval"] = _repeat_retrieval(model, splits.test, sessions["shared_x"], sessions["shared_y"])
    save_json(out / PARITY_FILE, found)
    return found


def _graph_inputs(dataset: PairedDataset, count: int, input: str) -> dict[str, np.ndarray]:
    """The first pairs of a split, at most ``count``, as graphs take them."""
    batch = dataset.batch(np.arange(min(count, len(dataset))))
    return {name: as_graph_input(values, input) for name, values in (("x", batch.x), ("y", batch.y))}


def _repeat_retrieval(model: IIAE, test: PairedDataset, session_x: Session, session_y: Session) -> dict[str, Any]:
    from iiae_fast import retrieval, training
    from iiae_fast.export.parity import agreement

    codes, metric = training.encode(model, test), default_metric(model.config)
    parts = []
    for start in range(0, len(test), _BATCH):
        batch = test.batch(np.arange(start, min(start + _BATCH, len(test))))
        parts.append([run_encoder(session, {"x": batch.x, "y": batch.y}) for session in (session_x, session_y)])
    x, y = (np.concatenate(column) for column in zip(*parts))
    result: dict[str, Any] = {"queries": 2 * len(test), "top1_agreement": 0.0, "top10_agreement": 0.0}
    k = min(10, len(test))
    sides = {"x_to_y": (x, y, codes.shared_x, codes.shared_y), "y_to_x": (y, x, codes.shared_y, codes.shared_x)}
    for direction, (queries, database, model_queries, model_database) in sides.items():
        nearest = retrieval.search(queries, database, k, metric=metric).indices
        expected = retrieval.search(model_queries, model_database, k, metric=metric).indices
        top1, top10 = agreement(nearest, expected)
        result["top1_agreement"] += top1 / 2
        result["top10_agreement"] += top10 / 2
        result[direction] = float((nearest[:, 0] == np.arange(len(test))).mean())
    return result


def as_graph_input(values: np.ndarray, input: str) -> np.ndarray:
    """Samples of a data set, uint8 images ``(B, C, H, W)`` or features, as a graph exported with that ``input`` takes them."""
    if values.dtype != np.uint8:
        return values
    if input == "uint8":
        return np.ascontiguousarray(values.transpose(0, 2, 3, 1))
    scaled: np.ndarray = values.astype(np.float32) / np.float32(127.5) - 1
    return scaled


def run_encoder(session: Session, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Codes ``(B, D)`` float32 of samples of a data set; those of a domain that the graph does not take are left aside."""
    named = {info.name: as_graph_input(inputs[info.name], session.metadata["input"]) for info in session.inputs}
    codes: np.ndarray = session(named)[session.outputs[0].name]
    return codes


def read_parity(directory: Path) -> dict[str, Any] | None:
    """What ``export_graphs`` kept in a directory; None when nothing was exported there.

    Raises:
        CheckpointError: The file is altered.
    """
    path = directory / PARITY_FILE
    return load_json(path) if path.exists() else None


def show(found: dict[str, Any]) -> None:
    """Print what ``export_graphs`` found."""
    reports = found["graphs"]

    def agreement(share: float | None) -> str:
        return "–" if share is None else percent(share)

    rows = [
        (
            report["graph"],
            report["precision"],
            f"{report['max_relative_error']:.1e}",
            f"{report['tolerance']:g}",
            f"{report['cosine']:.5f}",
            agreement(report["top1_agreement"]),
            agreement(report["gallery_top1_agreement"]),
        )
        for report in reports
    ]
    columns = ("graph", "precision", ">relative error", ">limit", ">cosine", ">same nearest neighbour", ">across domains")
    table(f"ONNX Runtime against the model, {reports[0]['samples']} test pairs", columns, rows)
    if "retrieval" in found:
        repeated = found["retrieval"]
        first, recalls = percent(repeated["top1_agreement"]), [percent(repeated[way]) for way in ("x_to_y", "y_to_x")]
        ten = percent(repeated["top10_agreement"])
        print(f"retrieval by ONNX Runtime, {repeated['queries']:,} queries: {first} of the nearest rows are the same,")
        print(f"{ten} of the ten nearest; R@1", *recalls)


@dataclass(frozen=True)
class ImportOfficial:
    """Turn a TensorFlow checkpoint of the published code into a run directory. Needs TensorFlow.

    Attributes:
        checkpoint: The checkpoint's prefix, its .index file, or its directory.
        out: Run directory to write.
        preset: Which experiment it is, so that evaluate and the rest know its data.
        data_root: Folder or file of that data, where it is not the preset's own.
        json: Print what was read as JSON.
    """

    checkpoint: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="CHECKPOINT")]]
    out: Path
    preset: str | None = None
    data_root: str | None = None
    json: bool = False

    def run(self) -> int:
        """Read, convert, save."""
        from iiae_fast import official
        from iiae_fast.model import IIAE

        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow tells of itself on stderr
        preset = None if self.preset is None else presets.get(self.preset)
        variables = official.read_checkpoint(self.checkpoint)
        config = official.config_of(variables)
        if preset is not None and preset.model.family != config.family:
            given, read = preset.model.family, config.family
            raise InputError(f"--preset {self.preset} is of the {given} family, the checkpoint of the {read} family")
        model = official.load_variables(IIAE(config), variables)
        extra: dict[str, Any] = {"source": self.checkpoint.name}
        if preset is not None:
            data = dataclasses.replace(preset.data, root=self.data_root or preset.data.root)
            extra["preset"] = dataclasses.replace(preset, model=config, data=data).to_dict()
        model.save(self.out, **extra)
        facts: dict[str, Any] = {"out": str(self.out), "model": dataclasses.asdict(config)}
        facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        if self.json:
            print_json(facts)
        else:
            print(f"{config.family} model of {facts['parameters']:,} parameters: {self.out}")
        return 0
