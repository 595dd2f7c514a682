"""PIR of LIMOPro: keep the line of reasoning, delete the checks and detours without which the answer is as likely.

arXiv 2505.19187. Where this departs from the paper, or where the paper leaves it open:

* Steps are paragraphs (or sentences), not groups made by a large language model.
* A step is classified by its marker phrases; the first one in the step decides. Steps without one are progressive
  unless a judge is plugged in, which is asked as the paper asks Claude.
* The question stands before the chain when the answer is scored, and what is scored is the gold answer in its box.
* The threshold is taken within each chain, and the number of steps is rounded down, which fits the paper's tables.
* Whether the shorter chain still leads to the answer can be checked by letting the scorer write it out (`recheck`).
"""

import asyncio
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import takewhile
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from satisfice.engines.base import Capability, Engine, EngineFailed, Sampling, derive_seed
from satisfice.supervision.method import TOGETHER, Curation, Tools, exactly, side_by_side
from satisfice.supervision.rows import Item, Reason, Response, SampledProblem, SFTRow
from satisfice.supervision.steps import FUNCTIONAL, Splitter, StepKind, ending_like, marked_kind, segment
from satisfice.thinking import decode, encode_after

ROUNDINGS: dict[str, Callable[[Fraction], int]] = {"floor": math.floor, "ceil": math.ceil, "round": round}
"""How many steps a share of them is; half goes to the even number."""
CUE, CLOSER = "The answer is \\boxed{", "}"
"""What stands around the scored answer."""
REPLY_TOKENS = 2048
ANSWER_TOKENS = 256

Key = tuple[str, str, int]
"""A trace: source, problem and its place."""


@dataclass(frozen=True)
class Scored:
    """The steps of one thinking, with what deleting each of them does.

    Attributes:
        steps: the texts.
        kinds: what each is for.
        pir: for each functional step, by its place: mean answer NLL without it less that with it, in nats.
        nonsense: whether the judge's reply could not be read.
    """

    steps: list[str]
    kinds: list[StepKind]
    pir: dict[int, float]
    nonsense: bool = False


@dataclass(frozen=True)
class PIR(Curation):
    """Right traces without their least important functional steps.

        PIR(i) = NLL(answer | question, chain without i) - NLL(answer | question, chain)

    NLL is the mean over the answer's tokens. Every functional step is scored by its deletion from the full chain. Of
    each functional kind the `ratio` of steps with the lowest PIR is deleted; of equal ones the later first.

    Attributes:
        ratio: share of the steps of each kind that is deleted.
        verification: the same for checks alone, in place of ratio.
        multi_method: the same for second ways.
        correction: the same for corrections; the paper's most balanced subset keeps them, which is 0.
        rounding: of the number of steps: "floor", "ceil" or "round".
        scope: where the lowest are looked for: in each "chain", or in all chains of the "data" together.
        splitter: how the thinking is divided into steps: "paragraph", "sentence" or "marker".
        scored: the answer in its "boxed" sentence, or "bare".
        judge: name of a companion engine that classifies the steps without a marker phrase; none unless given.
        recheck: whether the scorer writes the answer out after the shorter chain, which stays whole where that answer
            is not right.
        most: right traces of each problem at most, in the order of their sampling; all unless given.
    """

    name: ClassVar[str] = "pir"
    summary: ClassVar[str] = "right traces without the checks and detours that the answer does not need"
    paper: ClassVar[str] = "2505.19187 (LIMOPro)"

    ratio: Annotated[float, Field(ge=0, le=1)] = 0.3
    verification: Annotated[float, Field(ge=0, le=1)] | None = None
    multi_method: Annotated[float, Field(ge=0, le=1)] | None = None
    correction: Annotated[float, Field(ge=0, le=1)] | None = None
    rounding: Literal["floor", "ceil", "round"] = "floor"
    scope: Literal["chain", "data"] = "chain"
    splitter: Splitter = "paragraph"
    scored: Literal["boxed", "bare"] = "boxed"
    judge: str = ""
    recheck: bool = False
    most: Annotated[int, Field(ge=1)] | None = None
    _found: dict[Key, tuple[Scored, frozenset[int]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def needs(self) -> frozenset[Capability]:
        """Scores of given tokens."""
        return frozenset({Capability.SCORE})

    @property
    def companions(self) -> tuple[str, ...]:
        """The judge."""
        return (self.judge,) if self.judge else ()

    def select(self, problem: SampledProblem) -> list[Item]:
        """The right traces, still whole."""
        right, drops = problem.positives()
        taken = right[: self.most]
        rows = [SFTRow(problem, response := problem.response(place), response.tokens) for place in taken]
        return [*rows, *drops, *problem.drop(right[len(taken) :], Reason.SURPLUS)]

    def share(self, kind: StepKind) -> float:
        """Of the steps of a kind, the share that is deleted."""
        own = {
            StepKind.VERIFICATION: self.verification,
            StepKind.MULTI_METHOD: self.multi_method,
            StepKind.CORRECTION: self.correction,
        }[kind]
        return self.ratio if own is None else own

    def lowest(self, scores: Sequence[tuple[float, int]], kind: StepKind) -> set[int]:
        """Places in `scores` of the steps of one kind that are deleted.

        Args:
            scores: of each step its PIR and where it stands, which decides between equals: the later is deleted first.
            kind: of all of them.
        """
        number = ROUNDINGS[self.rounding](exactly(self.share(kind)) * len(scores))
        order = sorted(range(len(scores)), key=lambda place: (scores[place][0], -scores[place][1], -place))
        return set(order[:number])

    def pruned(self, scored: Scored) -> frozenset[int]:
        """The steps of one chain that are deleted, with the threshold taken within it."""
        gone: set[int] = set()
        for kind in FUNCTIONAL:
            places = [place for place in scored.pir if scored.kinds[place] is kind]
            gone |= {places[i] for i in self.lowest([(scored.pir[place], place) for place in places], kind)}
        return frozenset(gone)

    async def prepare(self, problems: Iterable[SampledProblem], tools: Tools | None) -> Self:
        """For scope=data, the scores of all chains and the steps that are deleted by them."""
        if self.scope == "chain" or tools is None:
            return self
        scores: dict[Key, Scored] = {}

        async def scored(problem: SampledProblem) -> dict[Key, Scored]:
            rows = [item for item in self.items(problem) if isinstance(item, SFTRow)]
            found = await asyncio.gather(
                *(self._score(problem, row.response, tools) for row in rows), return_exceptions=True
            )
            for each in found:
                # What failed is tried again, and counted, when its row is made.
                if isinstance(each, BaseException) and not isinstance(each, EngineFailed):
                    raise each
            return {
                (problem.source, problem.id, row.response.place): each
                for row, each in zip(rows, found, strict=True)
                if isinstance(each, Scored)
            }

        async for found in side_by_side((scored(problem) for problem in problems), TOGETHER):
            scores.update(found)
        gone: dict[Key, set[int]] = defaultdict(set)
        for kind in FUNCTIONAL:
            steps = [
                (found.pir[place], place, key)
                for key, found in scores.items()
                for place in found.pir
                if found.kinds[place] is kind
            ]
            for i in self.lowest([(pir, place) for pir, place, _ in steps], kind):
                gone[steps[i][2]].add(steps[i][1])
        prepared = replace(self)
        prepared._found.update({key: (found, frozenset(gone[key])) for key, found in scores.items()})
        return prepared

    async def refine(self, problem: SampledProblem, items: list[Item], tools: Tools) -> list[Item]:
        """The same traces, pruned."""
        return list(
            await asyncio.gather(
                *(self._prune(item, tools) if isinstance(item, SFTRow) else _as_it_is(item) for item in items)
            )
        )

    async def _prune(self, row: SFTRow, tools: Tools) -> Item:
        problem, response = row.problem, row.response
        known = self._found.get((problem.source, problem.id, response.place))
        try:
            scored = known[0] if known else await self._score(problem, response, tools)
        except _JudgeFailed:
            return problem.drop([response.place], Reason.JUDGE_FAILED)[0]
        if scored is None:
            return problem.drop([response.place], Reason.TOO_LONG)[0]
        gone = known[1] if known else self.pruned(scored) if self.scope == "chain" else frozenset()
        notes = {
            "steps": float(len(scored.steps)),
            "steps_functional": float(len(scored.pir)),
            "steps_deleted": float(len(gone)),
        }
        if self.judge:
            notes["judge_nonsense"] = float(scored.nonsense)
        if not gone:
            return replace(row, notes=notes)
        left = [step for place, step in enumerate(scored.steps) if place not in gone]
        thinking = ending_like("".join(left), response.thinking)
        tokenizer = tools.engine.tokenizer
        fewer = len(encode_after(tokenizer, response.thinking)) - len(encode_after(tokenizer, thinking))
        if self.recheck and not await tools.found(
            f"right/{problem.source}/{problem.id}/{response.place}",
            lambda: self._still_right(problem, thinking, tools),
        ):
            return replace(row, notes={**notes, "steps_deleted": 0.0, "answer_changed": 1.0})
        return replace(row, response=response.edited(thinking, fewer), notes=notes)

    # -- scores

    async def _score(self, problem: SampledProblem, response: Response, tools: Tools) -> Scored | None:
        """All functional steps of one chain, scored side by side; None where it does not fit into the engine."""

        async def find() -> dict[str, Any]:
            found = await self._scored(problem, response, tools)
            # JSON has texts alone for keys.
            return {"fits": False} if found is None else {**vars(found), "pir": list(found.pir.items()), "fits": True}

        known = await tools.found(f"chain/{problem.source}/{problem.id}/{response.place}", find)
        if not known["fits"]:
            return None
        kinds = [StepKind(kind) for kind in known["kinds"]]
        return Scored(known["steps"], kinds, {int(place): pir for place, pir in known["pir"]}, known["nonsense"])

    async def _scored(self, problem: SampledProblem, response: Response, tools: Tools) -> Scored | None:
        steps = segment(response.thinking, self.splitter)
        kinds = [marked_kind(step) for step in steps]
        nonsense = False
        if self.judge and None in kinds:
            judged = await _judged(tools.engine.companions[self.judge], problem, steps, tools.seed)
            nonsense = judged is None
            kinds = [kind or (judged or {}).get(place) for place, kind in enumerate(kinds)]
        # One step alone is the whole chain, and without a gold answer there is nothing to score.
        scorable = len(steps) > 1 and problem.gold.strip() != ""
        functional = [place for place, kind in enumerate(kinds) if kind in FUNCTIONAL] if scorable else []
        chains = [response.thinking] if functional else []
        chains += [
            ending_like("".join(step for other, step in enumerate(steps) if other != place), response.thinking)
            for place in functional
        ]
        scores = await asyncio.gather(*(self._answer_nll(problem, chain, tools.engine) for chain in chains))
        if any(score is None for score in scores):
            return None
        full, *without = [score for score in scores if score is not None] or [0.0]
        pir = {place: score - full for place, score in zip(functional, without, strict=True)}
        return Scored(steps, [kind or StepKind.PROGRESSIVE for kind in kinds], pir, nonsense)

    async def _answer_nll(self, problem: SampledProblem, chain: str, engine: Engine) -> float | None:
        """Mean negative log-likelihood of the gold answer after a chain, in nats."""
        cue, closer = (CUE, CLOSER) if self.scored == "boxed" else ("", "")
        asked = _behind(engine, problem, chain, cue)
        answered = _behind(engine, problem, chain, cue + problem.gold + closer)
        # The answer's first token may hold the cue's last character.
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, answered, strict=False)))
        if len(answered) > engine.context_length:
            return None
        logprobs = (await engine.score(answered, common)).logprobs
        return -math.fsum(logprobs) / len(logprobs)

    async def _still_right(self, problem: SampledProblem, thinking: str, tools: Tools) -> bool:
        engine = tools.engine
        ids = _behind(engine, problem, thinking, "")
        room = min(ANSWER_TOKENS, engine.context_length - len(ids) - 1)
        if room < 1:
            return False
        written = await engine.generate(ids, Sampling(temperature=0.0, top_p=1.0, max_tokens=room))
        finished = written.finish == "stop"
        answer = decode(engine.tokenizer, written.ids[: len(written.ids) - written.stop_tokens])
        return await tools.grade(problem, answer, finished)


async def _as_it_is(item: Item) -> Item:
    return item


def _behind(engine: Engine, problem: SampledProblem, chain: str, text: str) -> list[int]:
    """Ids of the prompt, a chain, the closing marker and `text`."""
    marks, tokenizer = engine.thinking, engine.tokenizer
    prompt = marks.render(tokenizer, [dict(turn) for turn in problem.turns])
    # A thinking that the model opened itself begins with what it wrote after the marker.
    automaton = marks.automaton(tokenizer)
    opened = automaton.phase(prompt.state).name == "THINKING"
    after = marks.opening.removeprefix(marks.open)
    begins = "" if opened else marks.open if after and chain.startswith(after) else marks.opening
    newline = "\n" if marks.newline_before_close and chain and not chain.endswith("\n") else ""
    return [*prompt.ids, *encode_after(tokenizer, f"{begins}{chain}{newline}{marks.closing}{text}")]


# -- the judge


class _JudgeFailed(EngineFailed):
    """The judge's engine went wrong."""


async def _judged(
    judge: Engine, problem: SampledProblem, steps: Sequence[str], seed: int
) -> dict[int, StepKind] | None:
    """What a language model says that steps are for, by their places; None where its reply cannot be read.

    Raises:
        _JudgeFailed: its engine went wrong.
    """
    numbered = "\n\n".join(f"[{place}] {step.strip()}" for place, step in enumerate(steps))
    messages = [
        {
            "role": "user",
            "content": "Below are the steps of a solution, each with its number. Say which of them check earlier steps "
            "(verification), which solve the problem a second way (multi-method) and which correct an error "
            "(correction). All others carry the solution forward. Reply with JSON alone: an object with the keys "
            '"verification", "multi-method" and "correction", each with a list of step numbers.\n\n'
            f"Problem: {problem.question}\n\nSteps:\n\n{numbered}",
        }
    ]
    prompt = judge.thinking.render(judge.tokenizer, messages, thinking=False)
    room = judge.context_length - len(prompt.ids) - 1
    if room < 1:
        return None
    sampling = Sampling(
        temperature=0.0, max_tokens=min(REPLY_TOKENS, room), seed=derive_seed(seed, f"judge/{problem.id}")
    )
    try:
        reply = await judge.generate(prompt.ids, sampling)
    except EngineFailed as error:
        raise _JudgeFailed(f"the judge failed: {error}", error.usage) from error
    split = judge.thinking.split(judge.tokenizer, reply.ids[: len(reply.ids) - reply.stop_tokens], prompt.state)
    return read_judgement(split.answer, len(steps))


def read_judgement(text: str, steps: int) -> dict[int, StepKind] | None:
    """The kinds in a judge's reply, by the places of the steps; None where it is not what was asked for.

    A step that stands under two kinds, and a number that no step has, make the reply unreadable: whoever is wrong there
    may be wrong elsewhere.
    """
    found = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        reply = json.loads(found[0]) if found else None
    except ValueError:
        return None
    if not isinstance(reply, dict) or not any(kind in reply for kind in FUNCTIONAL):
        return None
    kinds: dict[int, StepKind] = {}
    for kind in FUNCTIONAL:
        places = reply.get(kind, [])
        if not isinstance(places, list):
            return None
        for place in places:
            if type(place) is not int or not 0 <= place < steps or place in kinds:
                return None
            kinds[place] = kind
    return kinds
