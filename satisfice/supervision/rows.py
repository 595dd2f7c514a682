"""What curation takes and gives: a sampled problem, rows for supervised and for preference training, drops.

A sampled problem is one question with all its traces, as a run folder holds them. From it a curation makes rows, and
for every trace that ends up in no row a drop that says why. Nothing here knows a trainer or a tokenizer.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from satisfice.thinking import ThinkingFormat
from satisfice.trace import Trace


class Reason(StrEnum):
    """Why a trace is in no row."""

    UNGRADED = "not graded"
    TRUNCATED = "cut off at the token limit"
    WRONG = "wrong answer"
    NO_THINKING = "no thinking"
    NO_ANSWER = "no answer after the thinking"
    MARKER_INSIDE = "a marker inside the thinking or the answer"
    NO_TOKENS = "no length in tokens"
    REPEATED = "the same sample a second time"
    OTHER_PROMPT = "the traces of its problem differ in prompt or gold answer"
    FEW_SAMPLES = "fewer samples of its problem than the method compares"
    NO_RIGHT = "no right answer among the samples of its problem"
    ALL_RIGHT = "all samples of its problem are right"
    SURPLUS = "others of its problem were taken first"
    LONGER = "longer than what is kept of its problem"
    SAME_LENGTH = "right answers of its problem do not differ in length"
    NOT_LONGER = "wrong, and not longer than a right answer that is kept"
    NO_PARTNER = "no longer wrong answer to pair it with"
    NOT_STATED = "its thinking does not state the answer"
    MEDIUM = "its problem is neither easy nor hard"
    NOT_DRAWN = "not drawn"
    JUDGE_FAILED = "the judge failed"
    ENGINE_FAILED = "the engine failed"
    TOO_LONG = "longer than the engine can score"


@dataclass(frozen=True)
class SampledProblem:
    """A question and what was sampled for it.

    Attributes:
        id, source: which problem, of which set.
        turns: the chat up to the question, the instruction of the run included, as a template takes it.
        question: the question as the problem set has it.
        gold: the right answer.
        traces: what was sampled, in the order of the files; at least one.
        thinking: how the model marks its thinking.
        model, model_digest: who wrote the traces.
    """

    id: str
    source: str
    turns: tuple[Mapping[str, str], ...]
    question: str
    gold: str
    traces: tuple[Trace, ...]
    thinking: ThinkingFormat
    model: str = ""
    model_digest: str = ""

    @property
    def right(self) -> int:
        """How many traces are right; one that was cut off never is."""
        return sum(trace.correct and trace.finished for trace in self.traces)

    @property
    def pass_rate(self) -> float:
        """The share of right ones among all traces."""
        return self.right / len(self.traces)

    def response(self, place: int) -> "Response":
        """The trace in this place as a response."""
        trace = self.traces[place]
        return Response(trace.thinking, trace.answer, length(trace), trace.cost.thinking_tokens, place)

    def fault(self, place: int) -> Reason | None:
        """Why the trace in this place cannot be written as a row, right or wrong; None where it can.

        Truncated traces are among them: what a limit ended is no example of anything.
        """
        trace = self.traces[place]
        if trace.grade is None:
            return Reason.UNGRADED
        if trace.truncated:
            return Reason.TRUNCATED
        if trace.stop == "not opened" or not trace.thinking.strip():
            return Reason.NO_THINKING
        if not trace.answer.strip():
            return Reason.NO_ANSWER
        markers = (*self.thinking.openers, *self.thinking.closers)
        if any(marker in text for text in (trace.thinking, trace.answer) for marker in markers):
            return Reason.MARKER_INSIDE
        return None if length(trace) > 0 else Reason.NO_TOKENS

    def positives(self) -> tuple[list[int], "list[Drop]"]:
        """Places of the traces that may be examples, and a drop for each other one."""
        kept, drops = [], []
        for place, trace in enumerate(self.traces):
            fault = self.fault(place)
            # That it is wrong says more than how its text is broken.
            if trace.grade is not None and trace.finished and not trace.correct:
                fault = Reason.WRONG
            if fault is None:
                kept.append(place)
            else:
                drops.append(Drop(self.id, self.source, place, fault))
        return kept, drops

    def shortest_first(self, places: Iterable[int]) -> list[int]:
        """Places by length; of equal ones the earlier first."""
        return sorted(places, key=lambda place: (length(self.traces[place]), place))

    def drop(self, places: Iterable[int], reason: Reason) -> "list[Drop]":
        """A drop for the trace in each of these places."""
        return [Drop(self.id, self.source, place, reason) for place in places]

    def drop_all(self, reason: Reason) -> "list[Drop]":
        """A drop for every trace."""
        return self.drop(range(len(self.traces)), reason)


def length(trace: Trace) -> int:
    """The length of a trace everywhere in this room: tokens of the whole response, as its engine counted them."""
    return trace.cost.retained_tokens


@dataclass(frozen=True)
class Response:
    """One response of a row.

    Attributes:
        thinking, answer: its two parts, without markers.
        tokens: of the whole response.
        thinking_tokens: of the thinking, the closing marker included.
        place: which trace of its problem it is, or was before it was edited.
    """

    thinking: str
    answer: str
    tokens: int
    thinking_tokens: int
    place: int

    def edited(self, thinking: str, fewer: int) -> "Response":
        """This response with another thinking that is `fewer` tokens shorter."""
        return replace(
            self, thinking=thinking, tokens=self.tokens - fewer, thinking_tokens=self.thinking_tokens - fewer
        )

    def content(self, marks: ThinkingFormat) -> str:
        """The assistant's turn: opening marker, thinking, closing marker, answer.

        A model that opens its thinking itself writes the line break after the marker as well; where the prompt opened
        it, the prompt has written both.
        """
        after = marks.opening.removeprefix(marks.open)
        opened = marks.open if after and self.thinking.startswith(after) else marks.opening
        return f"{opened}{self.thinking}{marks.close}{self.answer}"


@dataclass(frozen=True)
class Likelihood:
    """How likely a response was to the model that wrote it.

    Attributes:
        logprob: natural log-likelihood of the response, its end included.
        ids: digest of its tokens: whoever tokenizes the text again knows whether it speaks of the same ones.
    """

    logprob: float
    ids: str

    @classmethod
    def of(cls, trace: Trace) -> "Likelihood | None":
        """That of a trace; None where its run did not keep all of its log-probabilities."""
        known = [each for each in trace.logprobs or [] if each is not None]
        if not known or len(known) < len(trace.response_ids):
            return None
        return cls(round(math.fsum(known), 4), digest_of_ids(trace.response_ids))


def digest_of_ids(ids: Sequence[int]) -> str:
    """A short digest of a sequence of tokens."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SFTRow:
    """An example to imitate.

    Attributes:
        problem: what was asked.
        response: what the model is to write.
        before: tokens of the trace that it was made from.
        instruction: text about length after the question, "" for none.
        weight: its part in a weighted loss; None where the loss has none.
        pool: the pool it belongs to, for training that draws from several.
        level: the level that the instruction asks for.
        likelihood: of the response under the model that wrote it, for losses that compare with it.
        notes: numbers about how it was made.
    """

    problem: SampledProblem
    response: Response
    before: int
    instruction: str = ""
    weight: float | None = None
    pool: str = ""
    level: str = ""
    likelihood: Likelihood | None = None
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def places(self) -> tuple[int, ...]:
        """The traces it is made of."""
        return (self.response.place,)

    def to_dict(self, method: str) -> dict[str, Any]:
        """The row as JSON values: a chat under "messages", as TRL's `SFTTrainer` reads it."""
        assistant = {"role": "assistant", "content": self.response.content(self.problem.thinking)}
        extra: dict[str, Any] = {}
        if self.weight is not None:
            extra["weight"] = self.weight
        if self.pool:
            extra["pool"] = self.pool
        if self.level:
            extra["level"] = self.level
        if self.likelihood is not None:
            extra["likelihood"] = asdict(self.likelihood)
        return {
            "messages": [*_asked(self.problem.turns, self.instruction), assistant],
            **extra,
            "tokens": self.response.tokens,
            "provenance": _provenance(self.problem, method, self.places, self.before, self.notes),
        }


@dataclass(frozen=True)
class PreferenceRow:
    """Two responses, of which one is to be preferred.

    Attributes:
        problem: what was asked.
        chosen, rejected: the responses.
        before: tokens of the trace that the chosen one was made from.
        notes: numbers about how it was made.
    """

    problem: SampledProblem
    chosen: Response
    rejected: Response
    before: int
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def response(self) -> Response:
        """What the model is to learn to write."""
        return self.chosen

    @property
    def places(self) -> tuple[int, ...]:
        """The traces it is made of."""
        return (self.chosen.place, self.rejected.place)

    def to_dict(self, method: str) -> dict[str, Any]:
        """The row as JSON values: prompt, chosen and rejected as chats, as TRL's `DPOTrainer` reads them."""
        marks = self.problem.thinking
        return {
            "prompt": _asked(self.problem.turns, ""),
            "chosen": [{"role": "assistant", "content": self.chosen.content(marks)}],
            "rejected": [{"role": "assistant", "content": self.rejected.content(marks)}],
            "chosen_tokens": self.chosen.tokens,
            "rejected_tokens": self.rejected.tokens,
            "provenance": _provenance(self.problem, method, self.places, self.before, self.notes),
        }


@dataclass(frozen=True)
class Drop:
    """A trace that is in no row.

    Attributes:
        problem_id, source: of which problem.
        place: which of its traces.
        reason: why.
    """

    problem_id: str
    source: str
    place: int
    reason: Reason


Row = SFTRow | PreferenceRow
Item = Row | Drop


def inconsistent(problem: SampledProblem) -> bool:
    """Whether the traces of one problem were not asked the same."""
    return any(_as_asked(trace) != _as_asked(problem.traces[0]) for trace in problem.traces)


def _as_asked(trace: Trace) -> tuple[object, ...]:
    return trace.system, trace.history, trace.prompt, trace.gold, trace.prompt_ids


def without_repeats(problem: SampledProblem) -> tuple[list[int], list[Drop]]:
    """Places of the traces that are there for the first time, and a drop for each other one.

    Two runs with one seed hold the same samples; counted twice they would pretend to more evidence than there is.
    """
    seen: set[tuple[object, ...]] = set()
    kept, drops = [], []
    for place, trace in enumerate(problem.traces):
        key = (trace.method, trace.seed, trace.thinking, trace.answer, *trace.response_ids)
        if key in seen:
            drops.append(Drop(problem.id, problem.source, place, Reason.REPEATED))
        else:
            kept.append(place)
            seen.add(key)
    return kept, drops


def _asked(turns: Sequence[Mapping[str, str]], instruction: str) -> list[dict[str, str]]:
    asked = [dict(turn) for turn in turns]
    if instruction:
        asked[-1]["content"] = f"{asked[-1]['content']}\n\n{instruction}"
    return asked


def _provenance(
    problem: SampledProblem, method: str, places: Sequence[int], before: int, notes: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "problem_id": problem.id,
        "source": problem.source,
        "method": method,
        "model": problem.model,
        "model_digest": problem.model_digest,
        "samples": [problem.traces[place].sample for place in places],
        "seeds": [problem.traces[place].seed for place in places],
        "tokens_before": before,
        **({"notes": dict(notes)} if notes else {}),
    }
