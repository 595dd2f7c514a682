"""What a step of decoding reads of the keys and values before it: all of them, or a budget (Kinetics, 2506.05333).

One spelling for what an engine does and for what `satisfice.measurement.cost` prices: block-topk:budget=64,block=16.
"""

from dataclasses import asdict, dataclass
from typing import Literal, Self, get_args

Kind = Literal["dense", "top-k", "block-topk", "local"]

SETTINGS = {
    "dense": (),
    "top-k": ("budget",),
    "block-topk": ("budget", "block", "recent"),
    "local": ("budget", "sinks"),
}
"""What may be said of each kind."""


@dataclass(frozen=True)
class Attention:
    """What a step reads of the keys and values before it.

    Attributes:
        kind: "dense" reads all. "top-k" reads the best `budget` for each head of keys, without the cost of finding
            them: a bound, not a method. "block-topk" finds the best blocks by the means of their keys, which it has to
            read. "local" reads the last ones.
        budget: tokens a step at most, its own among them.
        block: tokens of a block, of block-topk.
        recent: of block-topk, how many of `budget` are for the newest tokens, which are read whatever their score; a
            multiple of `block`, 0 stands for one block. The newest block may not be full yet.
        sinks: of local, how many of `budget` are the first tokens of the sequence (StreamingLLM, 2309.17453).

    Raises:
        ValueError: a number is out of its bounds, or does not go with the kind.
    """

    kind: Kind = "dense"
    budget: int = 1024
    block: int = 16
    recent: int = 0
    sinks: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"no attention {self.kind!r}; use dense, top-k, block-topk or local")
        if self.budget < 1 or self.block < 1:
            raise ValueError(f"attention needs a budget and a block of at least 1, not {self.budget} and {self.block}")
        for name in ("recent", "sinks"):
            if getattr(self, name) and name not in SETTINGS[self.kind]:
                raise ValueError(f"{name} is no setting of {self.kind}")
        if not 0 <= self.sinks < self.budget:
            raise ValueError(f"attention reads {self.sinks} sinks; they must be 0 or more and below the budget")
        if self.recent < 0 or self.recent % self.block:
            raise ValueError(f"attention has {self.recent} recent tokens; they must be a multiple of {self.block}")
        if self.kind == "block-topk" and not self.recent:
            object.__setattr__(self, "recent", self.block)

    @classmethod
    def parse(cls, text: str) -> Self:
        """What --attention says: a kind, and its settings as in block-topk:budget=1024,block=16.

        Raises:
            ValueError: it is none of the known kinds, or a number of it is none, or out of its bounds.
        """
        kind, _, rest = text.partition(":")
        if kind not in SETTINGS:
            raise ValueError(f"no attention {kind!r}; use dense, top-k, block-topk or local")
        settings: dict[str, int] = {}
        for part in filter(None, rest.split(",")):
            name, _, value = part.partition("=")
            if name not in SETTINGS[kind] or not (value.isascii() and value.isdecimal()):
                raise ValueError(
                    f"--attention {text!r}: {part!r} is no setting of {kind}, as in block-topk:budget=1024,block=16"
                )
            settings[name] = int(value)
        return cls(kind, **settings)  # type: ignore[arg-type]

    def __str__(self) -> str:
        said = {name: value for name, value in asdict(self).items() if name in SETTINGS[self.kind]}
        if said.get("recent") == self.block:
            del said["recent"]
        if not self.sinks:
            said.pop("sinks", None)
        return ":".join(filter(None, [self.kind, ",".join(f"{name}={value}" for name, value in said.items())]))


DENSE = Attention()
