"""``iiae embed`` and ``iiae search``: samples to codes, codes to neighbours. ONNX files and searches need no torch."""

from __future__ import annotations

__all__ = ["Embed", "Search"]

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import tyro

from iiae_fast.cli.codes_file import CodesFile
from iiae_fast.cli.deploy import run_encoder
from iiae_fast.cli.output import print_json, spans, table
from iiae_fast.cli.sources import Source, open_source, read_array, split_source
from iiae_fast.config import ModelConfig, Preset, from_dict
from iiae_fast.errors import InputError

Code = Literal["auto", "shared_x", "shared_y", "exclusive_x", "exclusive_y", "joint"]
Metric = Literal["sqeuclidean", "euclidean", "cosine", "inner_product", "gaussian_kl", "gaussian_w2"]


class _Encoder(NamedTuple):
    """What embeds.

    Attributes:
        code: Name of the code.
        identity: Changes with code and weights.
        encode: Samples by domain to codes ``(B, D)`` float32.
    """

    code: str
    identity: str
    encode: Callable[[dict[str, np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Embed:
    """Write the codes of samples as a float32 array (N, D).

    Codes are written batch by batch to OUT.partial and moved to OUT at the end. When a damaged sample or an interruption ends
    the command, what was done is kept there, and the same command goes on after it.

    Attributes:
        model: A run directory, or an encoder exported to ONNX (which runs without torch).
        source: train, valid or test (a split of the data the model was trained on); or an image, a folder of images, a .npy
            array, a .npz file with arrays x and y: images uint8 (N, C, H, W), features float32 (N, F).
        code: Which code; joint is q(z_s|x, y). auto is shared_x for a run, and the one that an ONNX file holds.
        out: File to write.
        batch_size: Samples per run of the encoder.
        device: auto, cpu, cuda, cuda:1, …
        threads: CPU threads; by default all cores.
        json: Print what was written as JSON.
    """

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN|ONNX")]]
    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SPLIT|PATH")]] = "test"
    code: Code = "auto"
    out: Path = Path("codes.npy")
    batch_size: int = 256
    device: str = "auto"
    threads: int | None = None
    json: bool = False

    def run(self) -> int:
        """Encode and write."""
        if self.batch_size < 1:
            raise InputError(f"--batch-size {self.batch_size}: accepted is a whole number of at least 1")
        if self.out.suffix != ".npy":
            raise InputError(f"--out {self.out}: codes are written as a .npy file")
        encoder, source = self._from_onnx() if self.model.suffix == ".onnx" else self._from_run()
        with CodesFile(self.out, encoder.identity) as file:
            resumed = file.resume(len(source), source.identity)
            try:
                self._encode(encoder, source, file)
            except InputError as error:
                if not file.rows:
                    raise
                kept = f"{file.rows:,} of {len(source):,} codes are kept in {file.folder}"
                raise InputError(f"{error}; {kept}, and the same command goes on after them") from error
            rows, dim = file.rows, file.dim
            file.finish()
        if self.json:
            print_json({"code": encoder.code, "rows": rows, "dim": dim, "out": str(self.out), "resumed": resumed})
        else:
            before = f" ({resumed:,} of them done before)" if resumed else ""
            print(f"{rows:,} codes {encoder.code} of {dim} values: {self.out}{before}")
        return 0

    def _encode(self, encoder: _Encoder, source: Source, file: CodesFile) -> None:
        for span in spans(len(source), self.batch_size, "encoding", file.rows):
            identities = [source.identity(int(row)) for row in span]  # before the samples are read: a later change is seen
            codes = encoder.encode(source.fetch(span))
            bad = np.flatnonzero(~np.isfinite(codes).all(axis=1))
            if len(bad):
                name, share = source.names[span[bad[0]]], f"{len(bad)} of {len(span)} in this batch"
                raise InputError(f"{self.model}: the code {encoder.code} of sample {name} is not finite ({share})")
            file.append(codes, identities)

    def _from_run(self) -> tuple[_Encoder, Source]:
        from iiae_fast.cli.runs import open_model, open_preset

        code = "shared_x" if self.code == "auto" else self.code
        kind, _, domain = code.partition("_")
        domains = (domain,) if domain else ("x", "y")
        model = open_model(self.model, self.device, self.threads)
        import torch  # after a missing directory was refused

        from iiae_fast.model import WEIGHTS_FILE

        device = next(model.parameters()).device
        method = model.encode_exclusive if kind == "exclusive" else model.encode_shared

        def tensor(values: np.ndarray) -> torch.Tensor:
            moved = torch.from_numpy(np.ascontiguousarray(values)).to(device)
            return moved.contiguous(memory_format=torch.channels_last) if moved.dim() == 4 else moved  # as in training

        def encode(inputs: dict[str, np.ndarray]) -> np.ndarray:
            with torch.inference_mode():
                codes: np.ndarray = method(**{name: tensor(inputs[name]) for name in domains}).float().cpu().numpy()
            return codes

        identity = f"{code} {hashlib.sha256((self.model / WEIGHTS_FILE).read_bytes()).hexdigest()}"
        return _Encoder(code, identity, encode), self._source(domains, model.config, lambda: open_preset(self.model))

    def _from_onnx(self) -> tuple[_Encoder, Source]:
        from iiae_fast import export

        session = export.load(self.model, device=self.device, threads=self.threads)
        graph = export.GRAPHS[session.metadata["graph"]]
        if graph.kind != "encoder":
            raise InputError(f"{self.model}: graph {graph.name} is no encoder")
        if len(graph.outputs) > 1:
            raise InputError(
                f"{self.model}: graph {graph.name} gives {', '.join(graph.outputs)}; embed takes graphs of one code"
            )
        if self.code not in ("auto", graph.name):
            raise InputError(f"--code {self.code}: {self.model} holds graph {graph.name}")

        def preset() -> Preset:
            if "preset" not in session.metadata:
                raise InputError(f"{self.model}: says nothing of its data; give files instead of a split")
            return Preset.from_dict(json.loads(session.metadata["preset"]))

        config = from_dict(ModelConfig, json.loads(session.metadata["config"]))
        encoder = _Encoder(graph.name, session.metadata["checksum"], lambda inputs: run_encoder(session, inputs))
        return encoder, self._source(graph.inputs, config, preset)

    def _source(self, domains: tuple[str, ...], config: ModelConfig, preset: Callable[[], Preset]) -> Source:
        if self.source in ("train", "valid", "test"):
            from iiae_fast import data

            data_config = preset().data
            return split_source(getattr(data.load(data_config), self.source), data_config, self.source)
        return open_source([Path(self.source)], domains, config)


@dataclass(frozen=True)
class Search:
    """Find the k nearest rows of a database for every query, exactly.

    Attributes:
        database: .npy file (N, D); it is streamed from disk, so it may be larger than memory.
        queries: .npy file (Q, D).
        k: How many neighbours.
        metric: Distance; the gaussian ones compare packed posteriors [mean | logvar].
        exclude_self: The queries are the database, and query i must not find row i.
        out: .npz file to write: distances float32 (Q, k) and indices int64 (Q, k).
        device: cpu, or cuda, cuda:1, …: the database is streamed to it.
        threads: CPU threads; by default all cores.
        json: Print distances and indices as JSON; where no row is left, the distance is null and the index -1.
    """

    database: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DATABASE.npy")]]
    queries: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="QUERIES.npy")]]
    k: int = 10
    metric: Metric = "sqeuclidean"
    exclude_self: bool = False
    out: Path | None = None
    device: str = "cpu"
    threads: int | None = None
    json: bool = False

    def run(self) -> int:
        """Search, write, print."""
        from iiae_fast import retrieval
        from iiae_fast.storage import write_atomic

        if self.out is not None and self.out.suffix != ".npz":
            raise InputError(f"--out {self.out}: hits are written as a .npz file")
        try:
            index = retrieval.FlatIndex(str(self.database), self.metric, self.device, threads=self.threads)
            hits = index.search(read_array(self.queries), self.k, exclude="self" if self.exclude_self else None)
        except ValueError as error:  # the engine's own limit on the number of rows is no InputError
            raise InputError(str(error)) from error
        if self.out is not None:
            buffer = io.BytesIO()
            np.savez(buffer, distances=hits.distances, indices=hits.indices)
            write_atomic(self.out, buffer.getvalue())
        if self.json:
            # JSON has no infinity, the distance of places that no row was left for (index -1).
            distances = [[d if np.isfinite(d) else None for d in row] for row in hits.distances.tolist()]
            print_json({"distances": distances, "indices": hits.indices.tolist()})
            return 0
        shown, columns = min(10, len(hits.indices)), min(5, self.k)
        rows = [
            [
                str(query),
                *(f"{index}  {distance:.6g}" for index, distance in zip(hits.indices[query, :columns], hits.distances[query])),
            ]
            for query in range(shown)
        ]
        title = (
            f"{self.metric}, first {columns} of {self.k} neighbours of {shown} of {len(hits.indices):,} queries: row, distance"
        )
        table(title, (">query", *(f">{rank + 1}" for rank in range(columns))), rows)
        if self.out is not None:
            print(f"all of them: {self.out}")
        return 0
