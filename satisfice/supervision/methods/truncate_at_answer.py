"""Cut a right trace after the step that first states its answer. A baseline in the manner of C3oT."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from satisfice.engines.base import Engine
from satisfice.problems.statements import stated_answer
from satisfice.supervision.method import Curation
from satisfice.supervision.rows import Drop, Item, Reason, Response, SampledProblem, SFTRow
from satisfice.supervision.steps import Splitter, ending_like, segment


@dataclass(frozen=True)
class TruncateAtAnswer(Curation):
    """Everything after the first right answer of a thinking is left out, whole steps at a time.

    The place is found by text alone: `stated_answer` looks for the sentence that concludes with the gold answer, else
    for the one that computes it, else for the one that mentions it where the question does not. The step that holds
    it is kept whole. The answer after the thinking stays as it was written. All of it is ours; the published
    relatives compress with another model.

    What it cannot see: a right number that stands there by chance, and a check without which the answer would not have
    been found. How many tokens the shorter thinking has is estimated by its share of the characters.

    Attributes:
        splitter: how the thinking is divided into steps: "paragraph", "sentence" or "marker".
        more: further steps that are kept after the one that states the answer.
        most: right traces of each problem at most; all unless given.
        taken: which of them: the "first" sampled, or the "shortest" after the cut. The shortest ones are those whose
            first answer was right: a trace that came to it by correcting itself teaches the error, too.
    """

    name: ClassVar[str] = "truncate-at-answer"
    summary: ClassVar[str] = "right traces, cut after the step that first states the answer"

    splitter: Splitter = "paragraph"
    more: Annotated[int, Field(ge=0)] = 0
    most: Annotated[int, Field(ge=1)] | None = None
    taken: Literal["first", "shortest"] = "first"

    def remarks(self, engine: Engine | None) -> tuple[str, ...]:
        """How lengths after the cut were found."""
        return ("How many tokens the shorter thinking has is an estimate, its share of the characters.",)

    def select(self, problem: SampledProblem) -> list[Item]:
        """The right traces that state their answer, each up to there."""
        right, items = problem.positives()
        rows: list[SFTRow] = []
        for place in right:
            if self.taken == "first" and self.most is not None and len(rows) >= self.most:
                items += problem.drop([place], Reason.SURPLUS)
            elif isinstance(made := self._cut(problem, problem.response(place)), Drop):
                items.append(made)
            else:
                rows.append(made)
        if self.taken == "shortest":
            rows.sort(key=lambda row: row.response.tokens)  # of equal ones the earlier stays in front
        kept, longer = rows[: self.most], rows[len(rows[: self.most]) :]
        return [*kept, *items, *problem.drop([row.response.place for row in longer], Reason.LONGER)]

    def _cut(self, problem: SampledProblem, response: Response) -> SFTRow | Drop:
        found = stated_answer(problem.question, response.thinking, problem.gold)
        if found is None:
            return Drop(problem.id, problem.source, response.place, Reason.NOT_STATED)
        steps = segment(response.thinking, self.splitter)
        kept, written = 0, 0
        while written < found:
            written += len(steps[kept])
            kept += 1
        kept = min(len(steps), kept + self.more)
        thinking = ending_like("".join(steps[:kept]), response.thinking)
        gone = 1 - len(thinking) / len(response.thinking)
        edited = response.edited(thinking, round(gone * response.thinking_tokens))
        return SFTRow(problem, edited, response.tokens, notes={"steps": len(steps), "steps_kept": kept})
