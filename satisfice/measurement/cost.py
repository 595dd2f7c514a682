"""What generating costs: operations and memory traffic, after Kinetics (arXiv 2506.05333).

Tokens are not equally expensive: each step of decoding reads the keys and values of all tokens before it, so the cost
of a response grows with the square of its length. With P parameters, D elements of keys and values a token, r query
heads a head of keys, L tokens after a prompt of L_in:

    operations  2 P L + r D (2 L_in + L) L
    bytes       D (2 L_in + L) L            keys and values of 16 bits; weights are read once for a whole batch
    eFLOPs      operations + intensity x bytes

Everything here takes arrays of lengths and gives a value for each, so that a mean over responses has the mean of L^2
in it and not the square of the mean. Formulas are the paper's; those for sparse attention were derived from the
definition, not taken from its program, which adds a term that has to be taken away and misjudges what is shorter than
the budget.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from satisfice.attention import DENSE, Attention

Floats = NDArray[np.float64]

PAPER_INTENSITY = 562.5
"""Operations a byte: 4,500 TFLOP/s over 8 TB/s, the B200 with operations of 8 bits, though keys and values have 16."""


@dataclass(frozen=True)
class Accelerator:
    """Peak numbers of a device, of its makers' data sheets.

    Attributes:
        flops: dense operations a second, of 16 bits where the name says nothing else.
        bandwidth: bytes a second.
    """

    flops: float
    bandwidth: float

    @property
    def intensity(self) -> float:
        """Operations that take as long as one byte."""
        return self.flops / self.bandwidth


ACCELERATORS = {
    "b200-fp8": Accelerator(4500e12, 8e12),
    "b200": Accelerator(2250e12, 8e12),
    "h200": Accelerator(989e12, 4.8e12),
    "h100": Accelerator(989e12, 3.35e12),
    "a100": Accelerator(312e12, 2.039e12),
}
"""The first is the paper's."""


@dataclass(frozen=True)
class Shape:
    """What of a model decides its cost.

    Attributes:
        parameters: active ones, of a mixture of experts.
        layers: of attention.
        heads: of queries in each.
        kv_heads: of keys and values in each.
        head_dim: elements of each.
    """

    parameters: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        for name in ("parameters", "layers", "heads", "kv_heads", "head_dim"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; a model has more than none")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} heads of keys evenly")

    @property
    def kv_elements(self) -> int:
        """D: elements of keys and values a token."""
        return 2 * self.kv_heads * self.head_dim * self.layers

    @property
    def ratio(self) -> float:
        """r: query heads a head of keys."""
        return self.heads / self.kv_heads

    def kv_bytes(self, tokens: ArrayLike) -> Floats:
        """Bytes that keys and values of so many tokens take, at 16 bits."""
        return np.asarray(2 * self.kv_elements * np.asarray(tokens, dtype=np.float64))


SHAPES = {
    "smollm2": Shape(134_515_008, 30, 9, 3, 64),
    "Qwen/Qwen3-0.6B": Shape(0.752e9, 28, 16, 8, 128),
    "Qwen/Qwen3-1.7B": Shape(2.03e9, 28, 16, 8, 128),
    "Qwen/Qwen3-4B": Shape(4.02e9, 36, 32, 8, 128),
    "Qwen/Qwen3-8B": Shape(8.19e9, 36, 32, 8, 128),
    "Qwen/Qwen3-14B": Shape(14.77e9, 40, 40, 8, 128),
    "Qwen/Qwen3-32B": Shape(32.76e9, 64, 64, 8, 128),
}
"""Models whose shape is known without their files; parameters as Kinetics counts them."""


@dataclass(frozen=True)
class Work:
    """Operations and bytes, a value for each response.

    Attributes:
        flops: operations.
        bytes: of keys and values that are read.
    """

    flops: Floats
    bytes: Floats

    def eflops(self, intensity: float) -> Floats:
        """Both in one number: operations and intensity times bytes."""
        return self.flops + intensity * self.bytes

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)


def tokens_read(prompt: ArrayLike, tokens: ArrayLike, attention: Attention = DENSE) -> Floats:
    """S: tokens that all steps of a response read together, in the paper's continuous form.

    A step after t tokens reads the smaller of L_in + t and the budget.

    Args:
        prompt: tokens before.
        tokens: tokens of the response.
    """
    before, length = np.asarray(prompt, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    if attention.kind == "dense":
        return np.asarray(before * length + length**2 / 2)
    # Up to here the budget holds everything, from here on it is read whole.
    whole = np.clip(attention.budget - before, 0, length)
    return np.asarray(before * whole + whole**2 / 2 + attention.budget * (length - whole))


def decoding(
    shape: Shape,
    prompt: ArrayLike,
    tokens: ArrayLike,
    attention: Attention = DENSE,
    *,
    trials: int = 1,
) -> Work:
    """The work of `trials` responses to one prompt, as Kinetics counts it: no prefill, weights read once a batch.

    With dense attention the prompt's keys and values are read once for all trials, with sparse attention by each.

    Args:
        shape: the model.
        prompt, tokens: as in `tokens_read`.
        attention: what a step reads.
        trials: responses of that length.

    Raises:
        ValueError: there is no trial.
    """
    if trials < 1:
        raise ValueError(f"a prompt needs at least one response, not {trials}")
    before, length = np.asarray(prompt, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    elements, ratio = shape.kv_elements, shape.ratio
    read = tokens_read(before, length, attention)
    flops = trials * (2 * shape.parameters * length + 2 * ratio * elements * read)
    if attention.kind == "dense":
        traffic = elements * (2 * before * length + trials * length**2)
    else:
        traffic = trials * 2 * elements * read
    if attention.kind == "block-topk":
        flops = flops + trials * (2 * before + length) / attention.block * length * ratio * elements / 2
        traffic = traffic + (2 * before + trials * length) / attention.block * length * elements / 2
    return Work(np.asarray(flops), np.asarray(traffic))


def besides(
    shape: Shape,
    prompt: ArrayLike,
    tokens: ArrayLike,
    extra: ArrayLike,
    prefilled: ArrayLike,
    attention: Attention = DENSE,
) -> Work:
    """What the paper leaves out: tokens beside the response, and positions of prompts that were computed (ours).

    Probes, branches and outlines are counted as steps at the middle of the response, where they are on average.
    Prefill is dense.
    Prefilling reads each weight once for many positions and each key once for many queries, so all its traffic that is
    counted is writing keys and values.

    Args:
        shape: the model.
        prompt, tokens: of the response.
        extra: tokens that were generated beside it.
        prefilled: positions that were computed cold.
        attention: what a step reads.
    """
    middle = np.asarray(prompt, dtype=np.float64) + np.asarray(tokens, dtype=np.float64) / 2
    if attention.kind != "dense":
        # The means of blocks are half of what blocks hold: keys without values.
        means = middle / attention.block / 2 if attention.kind == "block-topk" else 0
        middle = np.minimum(middle, attention.budget) + means
    beside, cold = np.asarray(extra, dtype=np.float64), np.asarray(prefilled, dtype=np.float64)
    elements, ratio = shape.kv_elements, shape.ratio
    flops = beside * (2 * shape.parameters + 2 * ratio * elements * middle)
    flops = flops + 2 * shape.parameters * cold + ratio * elements * cold**2
    return Work(np.asarray(flops), np.asarray(2 * elements * (middle * beside + cold)))


def attention_share(shape: Shape, prompt: float, tokens: float, intensity: float) -> float:
    """Phi: eFLOPs of dense attention over operations of the parameters, at this length."""
    elements, ratio = shape.kv_elements, shape.ratio
    return (2 * ratio * prompt * elements + (ratio + intensity) * elements * tokens) / (2 * shape.parameters)


def price(eflops: float, flops_per_second: float, per_hour: float, answers: int = 1000) -> float:
    """Dollars for so many answers on a device that is kept busy at its peak: a lower bound of what it costs.

    Args:
        eflops: of one answer, at the device's own intensity.
        flops_per_second: its peak.
        per_hour: dollars an hour.
        answers: how many.
    """
    return eflops * answers / flops_per_second / 3600 * per_hour
