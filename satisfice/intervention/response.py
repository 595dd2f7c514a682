"""Where a response stands: its tokens, its place in the thinking format, and how it ended."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Literal

from satisfice.engines.base import Generation
from satisfice.intervention.stops import NO_STOPS, Stops
from satisfice.lazy import PreTrainedTokenizerBase
from satisfice.thinking import Phase, Prompt, Split, StreamSplitter, ThinkingFormat, ThinkingTracker, decode
from satisfice.trace import StopReason


@dataclass(frozen=True)
class Ending:
    """How a response ended, or where it stands still. Stop reason, `finished` and `truncated` derive from it.

    Attributes:
        by: who ended it: the model with an end-of-text token or one of the caller's stop texts, the method by
            declaring it complete, or the limit, which ends all that nobody ended.
        where: in the thinking, or in the answer or a text without thinking.
        stop: the end-of-text token's id or the stop text; None unless the model ended it.
        tokens: how many tokens at the end of the response hold `stop`.
    """

    by: Literal["model", "method", "limit"]
    where: Literal["thinking", "answer"]
    stop: int | str | None = None
    tokens: int = 0


class Response:
    """The tokens of one response and where they stand in the thinking format.

    Invariant: `tracker` has read the prompt and exactly `ids`; every place in `forced` is one of `ids`; `ended` is how
    the last of them ended the response, and is None again as soon as `ids` change.

    Args:
        thinking: how the model marks thinking.
        tokenizer: the model's tokenizer.
        prompt: what the response follows.
        stops: texts of the caller's that end the response.

    Attributes:
        prompt, stops: as given.
        ids: the response so far, forced tokens included.
        tracker: where `ids` stand in the thinking format.
        logprobs: of each of `ids`, as far as an engine has told them; None of all others.
        forced: the places in `ids` of the tokens that a method wrote itself, ascending.
        ended: how the model or the method has ended it; None where nobody has.
        stopped: whether one of `stops` has ended it; nothing is written to it or taken from it any more.
    """

    def __init__(
        self, thinking: ThinkingFormat, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, stops: Stops = NO_STOPS
    ) -> None:
        self._thinking, self._tokenizer = thinking, tokenizer
        self.stops = stops
        self.stopped = False
        self.ids: list[int] = []
        self.logprobs: list[float | None] = []
        self.forced: list[int] = []
        self.ended: Ending | None = None
        self.begin(prompt)

    def begin(self, prompt: Prompt) -> None:
        """Follow another prompt; for a response without tokens."""
        self.prompt = prompt
        self.tracker = self._tracked(self.ids)

    # -- what is read of it

    @property
    def phase(self) -> Phase:
        """Where the next token will stand."""
        return self.tracker.phase

    @property
    def where(self) -> Literal["thinking", "answer"]:
        """The part that an ending at this place would be in."""
        return "thinking" if self.phase is Phase.THINKING else "answer"

    @property
    def ending(self) -> Ending:
        """How it has ended; where nobody has ended it, by the limit, if nothing more is written."""
        return self.ended or Ending("limit", self.where)

    @property
    def split(self) -> Split:
        """Thinking and answer as texts, without what has ended them, which is paid for, but nothing to read.

        That is the end-of-text token, or one of `stops` and what the token that completes it holds besides.
        """
        ended = self.ended is not None and isinstance(self.ended.stop, int)
        readable = self.ids[:-1] if ended else self.ids
        split = self._thinking.split(self._tokenizer, readable, self.prompt.state)
        if not self.stopped:
            return split
        if not self.stops.in_thinking:
            before = len(split.answer) - len(split.answer.lstrip())
            return replace(split, answer=split.answer[: before + self._found(self.ids)[0]])
        start = ThinkingTracker(self._thinking.automaton(self._tokenizer), self.prompt.state)
        splitter = StreamSplitter(self._thinking, self._tokenizer, start.phase, start.state)
        text = decode(self._tokenizer, self.ids)[: self._found(self.ids)[0]]
        pieces = [*splitter.push(text), *splitter.rest()]
        thinking, answer = (
            "".join(text for phase, text in pieces if phase is part) for part in (Phase.THINKING, Phase.ANSWER)
        )
        return replace(split, thinking=thinking, answer=answer)

    @property
    def stop_reason(self) -> StopReason:
        """Why thinking stopped."""
        if self.phase is Phase.ANSWER:
            end = self.tracker.end
            if not end:
                return "not opened"
            return "closed by method" if end - 1 in self.forced else "marker"
        if self.phase is Phase.BEFORE:
            return "not opened"
        return "token limit" if self.ending.by == "limit" else "end of text"

    @property
    def stopped_by(self) -> str:
        """What ended the whole response: the text of the model's stop, "method" or "length"."""
        ending = self.ending
        if ending.by == "model":
            return decode(self._tokenizer, [ending.stop]) if isinstance(ending.stop, int) else str(ending.stop)
        return "method" if ending.by == "method" else "length"

    # -- the caller's stops

    @property
    def stoppable(self) -> bool:
        """Whether the next token is one that `stops` act on."""
        return self.stops.in_thinking or self.phase is not Phase.THINKING

    @property
    def on_edge(self) -> bool:
        """Whether a stop, or a marker at which stops fall asleep or awake, may be half written."""
        automaton = self.tracker.automaton
        return automaton.matched[self.tracker.state] > 0 or (
            self.stoppable and self.stops.begun(self._stoppable_text(self.ids)) > 0
        )

    def stop_in(self, ids: Sequence[int]) -> str | None:
        """The one of `stops` that tokens of a response hold where it acts."""
        found = self.stops.find(self._stoppable_text(ids))
        return None if found is None else found[1]

    def overrun(self) -> int | None:
        """How many of the last tokens stand after the one that completes a stop; None where there is no stop."""
        if self.stop_in(self.ids) is None:
            return None
        kept, whole = 1, len(self.ids)
        while kept < whole:
            middle = (kept + whole) // 2
            kept, whole = (kept, middle) if self.stop_in(self.ids[:middle]) is not None else (middle + 1, whole)
        return len(self.ids) - kept

    def stop_here(self) -> None:
        """Let the stop end it that its last token completes."""
        _, stop = self._found(self.ids)
        held = next(
            (count for count in range(1, len(self.ids)) if stop in decode(self._tokenizer, self.ids[-count:])),
            len(self.ids),
        )
        self.ended, self.stopped = Ending("model", self.where, stop, held), True

    def _found(self, ids: Sequence[int]) -> tuple[int, str]:
        found = self.stops.find(self._stoppable_text(ids))
        assert found is not None
        return found

    def _stoppable_text(self, ids: Sequence[int]) -> str:
        if self.stops.in_thinking:
            return decode(self._tokenizer, ids)
        return self._thinking.split(self._tokenizer, ids, self.prompt.state).answer.lstrip()

    # -- what changes it

    def extend(self, ids: Sequence[int], logprobs: Sequence[float] | None = None) -> None:
        """Append tokens that the model wrote."""
        self.ended = None
        self.ids.extend(ids)
        self.logprobs.extend([None] * len(ids) if logprobs is None else logprobs)
        for token in ids:
            self.tracker.push(token)

    def force(self, ids: Sequence[int]) -> None:
        """Append tokens that a method wrote itself."""
        self.forced.extend(range(len(self.ids), len(self.ids) + len(ids)))
        self.extend(ids)

    def claim(self, start: int, end: int) -> None:
        """Take the tokens at these places for the method's own: its control forced them."""
        self.forced = sorted({*self.forced, *range(start, end)})

    def take_in(self, generation: Generation, stops: Sequence[str]) -> None:
        """Append what the model wrote, and note whether that ends the response.

        Args:
            generation: new tokens.
            stops: the stop texts that end a response; any other was for the method alone.
        """
        self.extend(generation.ids, generation.logprobs)
        stop = generation.stopped_by
        if isinstance(stop, int) or stop in stops:
            self.ended = Ending("model", self.where, stop, generation.stop_tokens)

    def end(self) -> None:
        """Let the method end it here."""
        self.ended = Ending("method", self.where)

    def take_back(self, tokens: int) -> None:
        """Remove the last tokens, of which there is at least one."""
        del self.ids[-tokens:], self.logprobs[-tokens:]
        self.forced = [place for place in self.forced if place < len(self.ids)]
        self.tracker = self._tracked(self.ids)
        self.ended = None

    def beginning(self, tokens: int | None) -> "Response":
        """A response of its own with the first `tokens` tokens of this one, all of them where None."""
        other = Response(self._thinking, self._tokenizer, self.prompt, self.stops)
        other.ids, other.logprobs = self.ids[:tokens], self.logprobs[:tokens]
        whole = len(other.ids) == len(self.ids)
        other.tracker = copy(self.tracker) if whole else self._tracked(other.ids)
        other.forced = [place for place in self.forced if place < len(other.ids)]
        if whole and self.stopped:
            other.ended, other.stopped = self.ended, True
        return other

    def become(self, other: "Response") -> None:
        """Take the place of another response to the same prompt, which is not written to any more."""
        self.ids, self.logprobs, self.tracker, self.forced = other.ids, other.logprobs, other.tracker, other.forced
        self.ended, self.stopped = other.ended, other.stopped

    def _tracked(self, ids: Sequence[int]) -> ThinkingTracker:
        tracker = ThinkingTracker(self._thinking.automaton(self._tokenizer), self.prompt.state)
        for token in ids:
            tracker.push(token)
        return tracker
