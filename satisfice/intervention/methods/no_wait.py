"""NoWait (arXiv 2506.08343): thinking without the words that begin a second thought."""

from dataclasses import dataclass
from typing import ClassVar

from satisfice.engines.base import Capability
from satisfice.intervention.controls import SuppressTokens, single_tokens
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Method, MethodError
from satisfice.thinking import ThinkingFormat


@dataclass(frozen=True)
class NoWait(Method):
    """Make words of reflection impossible while the model thinks.

    Only words that are one token are suppressed, with or without spaces around them and in any case. The first token
    of a longer spelling begins other words, too, and those should stay possible.

    Attributes:
        words: what to suppress, separated by "|". The list is ours, after the paper's keywords and without its
            everyday ones, such as "but", "other" and "now"; spaces around a word and its case do not count.
    """

    name: ClassVar[str] = "no-wait"
    summary: ClassVar[str] = "makes words of reflection impossible while thinking"
    paper: ClassVar[str] = "2506.08343 (NoWait)"
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.BIAS})
    # By its default list it makes all of the lab's openers of a check impossible, so it shows what checks are worth.
    on_lab: ClassVar[str] = ""

    words: str = "wait|but wait|hmm|alternatively|however|maybe|double-check|verify|oh|ah"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(self._listed):
            raise MethodError(f"no-wait: words is {self.words!r}; write one or more words with | between them")

    @property
    def _listed(self) -> tuple[str, ...]:
        return tuple(" ".join(word.split()).casefold() for word in self.words.split("|"))

    def control(self, thinking: ThinkingFormat) -> SuppressTokens:
        return SuppressTokens(words=self._listed)

    async def respond(self, draft: Draft) -> None:
        tokens = single_tokens(draft.engine.tokenizer, self._listed)
        if not any(tokens.values()):
            raise MethodError(f"no-wait: none of {', '.join(tokens)} is one token of {draft.engine.name}'s tokenizer")
        draft.note(
            "suppressed",
            words=[word for word, ids in tokens.items() if ids],
            tokens=sum(len(ids) for ids in tokens.values()),
            not_one_token=[word for word, ids in tokens.items() if not ids],
        )
        await draft.write()
