"""What is written in C++ (csrc/): the exact retrieval engine, and kernels of training.

Rows are matrices, contiguous in their last dimension; bfloat16 travels as uint16. Builds with CUDA have a submodule ``cuda`` as
well (see csrc/cuda/bindings.cpp), which only ``retrieval.device`` calls.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def select_instruction_set(name: str) -> None: ...
def select_method(name: str) -> None: ...
def validate(rows: NDArray[Any], dtype: str, metric: str, name: str, start: int, threads: int) -> None: ...
def lift(rows: NDArray[Any], dtype: str, metric: str, threads: int) -> NDArray[np.float64]: ...

class PackedRows:
    def __init__(self, rows: NDArray[Any], dtype: str, metric: str, threads: int) -> None: ...

class Searcher:
    def __init__(self, queries: NDArray[Any], dtype: str, metric: str, k: int, threads: int) -> None: ...
    def scan(
        self,
        rows: NDArray[Any],
        dtype: str,
        start: int,
        allowed: NDArray[np.bool_] | None,
        excluded: NDArray[np.bool_] | None,
        excluded_ids: NDArray[np.int64] | None,
        packed: PackedRows | None = None,
    ) -> None: ...
    def result(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...

class Ranking:
    def __init__(
        self,
        queries: NDArray[Any],
        dtype: str,
        metric: str,
        labels: NDArray[np.int64],
        excluded_ids: NDArray[np.int64] | None,
        threads: int,
    ) -> None: ...
    def collect(self, rows: NDArray[Any], dtype: str, start: int, labels: NDArray[np.int64]) -> None: ...
    def count(self, rows: NDArray[Any], dtype: str, start: int, labels: NDArray[np.int64]) -> None: ...
    def ranks(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...

class convolution:
    """Maps and weights travel as addresses; see csrc/convolution/bindings.cpp."""

    @staticmethod
    def down(
        sizes: Sequence[int],
        map: int,
        weight: int,
        strides: Sequence[int],
        bias: int,
        out: int,
        parallel: int,
        threads: int,
    ) -> None: ...
    @staticmethod
    def up(
        sizes: Sequence[int],
        map: int,
        weight: int,
        strides: Sequence[int],
        bias: int,
        out: int,
        parallel: int,
        threads: int,
    ) -> None: ...
    @staticmethod
    def weight_gradient(
        sizes: Sequence[int], small: int, large: int, out: int, strides: Sequence[int], parallel: int, threads: int
    ) -> None: ...
    @staticmethod
    def channel_sums(map: int, pixels: int, channels: int, out: int, parallel: int, threads: int) -> None: ...
    @staticmethod
    def instruction_sets() -> list[str]: ...
    @staticmethod
    def instruction_set() -> str: ...
    @staticmethod
    def select_instruction_set(name: str) -> None: ...
    @staticmethod
    def has_matrix_units() -> bool: ...

class batch_norm:
    """Maps and parameters travel as addresses; see csrc/batch_norm/bindings.cpp."""

    @staticmethod
    def forward(
        pixels: int,
        channels: int,
        x: int,
        weight: int,
        bias: int,
        mean: int,
        inverse_deviation: int,
        running_mean: int,
        running_variance: int,
        momentum: float,
        epsilon: float,
        slope: float,
        out: int,
        parallel: int,
        threads: int,
    ) -> None: ...
    @staticmethod
    def backward(
        pixels: int,
        channels: int,
        x: int,
        weight: int,
        bias: int,
        mean: int,
        inverse_deviation: int,
        slope: float,
        gradient: int,
        x_gradient: int,
        weight_gradient: int,
        bias_gradient: int,
        parallel: int,
        threads: int,
    ) -> None: ...

class adam:
    @staticmethod
    def update(
        parameters: list[tuple[int, int, int, int, int, int]],
        lr: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        parallel: int,
        threads: int,
    ) -> None: ...

class philox:
    @staticmethod
    def uniforms(
        seed: int, stream: int, count: int, least: float, first: int, second: int, parallel: int, threads: int
    ) -> None: ...

class reconstruction:
    @staticmethod
    def compute(
        samples: int,
        elements: int,
        gaussian: bool,
        tanh: bool,
        weight: float,
        prediction: int,
        target: int,
        bytes: bool,
        loss: int,
        gradient: int,
        parallel: int,
        threads: int,
    ) -> None: ...
    @staticmethod
    def scale(samples: int, elements: int, scales: int, gradient: int, parallel: int, threads: int) -> None: ...
