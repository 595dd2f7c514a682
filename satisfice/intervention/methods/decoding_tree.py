"""Decoding tree sketching (DTS, arXiv 2511.00640): one tree of branches, and the first of them to finish.

The model writes several responses at once that share their beginnings: it branches only where it wavers, and samples
everywhere else. All branches grow in step, so the first to finish is the shortest, and of many ways to an answer the
short ones are more often right. The two versions of the paper differ in what they take for wavering.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from satisfice.engines.base import Capability, Child, Generation, Leaf, Sampling, Usage, derive_seed
from satisfice.intervention.answers import canonical, find_answer, label, majority
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Method, MethodError
from satisfice.trace import Event

MAX_ACTIVE = {1: 12, 2: 48}
"""Branches alive at once at most in the experiments of each version."""
ENTROPY_TEMPERATURE = 0.6
"""Of version 2; version 1 measures at the temperature that it samples with."""
EARLY_STOP_ANSWERS = 4
"""Answers that there must be before `early_stop` looks at them."""
EARLY_STOP_SHARE = 0.4
"""Share of them that must agree."""


@dataclass(frozen=True, eq=False, slots=True)
class Branch:
    """A way from the prompt to one token, kept as that token and the way that it goes on from.

    Attributes:
        before: None for the empty way, which has no token.
        token: the newest one.
        logprob: of the whole way, in the model's own distribution.
        seed: what it draws with from here on.
        length: tokens.
    """

    before: "Branch | None"
    token: int
    logprob: float
    seed: int
    length: int

    def way(self) -> "list[Branch]":
        """Its beginnings, the empty one first, and itself."""
        found, branch = [self], self.before
        while branch is not None:
            found.append(branch)
            branch = branch.before
        return found[::-1]

    def ids(self) -> list[int]:
        """Its tokens."""
        return [branch.token for branch in self.way()[1:]]

    def last(self, count: int) -> list[int]:
        """Its newest `count` tokens, or what there is of them."""
        ids: list[int] = []
        branch = self
        while branch.before is not None and len(ids) < count:
            ids.append(branch.token)
            branch = branch.before
        return ids[::-1]


@dataclass(frozen=True)
class Finished:
    """A branch that the model has ended.

    Attributes:
        branch: all of it, the end included.
        answer: what it answers, None where it gives none.
    """

    branch: Branch
    answer: str | None


@dataclass
class Sketch:
    """How far a tree has grown.

    Attributes:
        active: branches that go on, those of the likelier tokens first.
        finished: branches that have ended, the earliest first.
        frozen: whether it has ceased to branch.
        born: branches that there have been besides the first.
        tokens: unique tokens of all branches, dropped ones included.
        events: what happened, and the branch that it happened to.
    """

    active: list[Branch]
    finished: list[Finished] = field(default_factory=list)
    frozen: bool = False
    born: int = 0
    tokens: int = 0
    events: list[tuple[Branch, Event]] = field(default_factory=list)

    def note(self, branch: Branch, kind: str, **detail: object) -> None:
        """Record an event at the end of a branch."""
        self.events.append((branch, Event(at=branch.length, kind=kind, detail=detail)))

    def events_of(self, chosen: Branch) -> list[Event]:
        """All events in their order; those of a branching or an end say whether the chosen branch is part of it."""
        way = set(chosen.way())
        for branch, event in self.events:
            if event.kind in ("branch", "finished"):
                event.detail["returned"] = branch in way
        return [event for _, event in self.events]


@dataclass(frozen=True)
class DecodingTree(Method):
    """Branch where the model wavers, and return the first branch to finish, or what the first few agree on.

    Version 2 branches where the entropy is at most `tau_h` and the varentropy above `tau_v`: little is in question,
    but what is, is very unlike the rest. Once `max_active` branches live it never branches again. Version 1 branches
    where the entropy is above `tau_h`, at any time, and keeps the `max_active` likeliest branches. Where a branch
    branches, in thinking or in the answer, it takes up the `k` likeliest tokens; elsewhere it samples one.

    The first branch to finish ends the tree (DTS-Greedy). With more `traces` the finished ones vote (DTS-Stable), and
    the first with the winning answer is returned: one without an answer does not vote, of equals the earliest wins, and
    where nobody votes the first is returned. Of those that finish together version 1 returns the likeliest, version 2
    lets them vote. If none finishes, the likeliest branch is returned as it is.

    Attributes:
        traces: finished branches to wait for: 1 is DTS-Greedy, the paper's DTS-Stable takes 8. Version 1 knows 1 only.
        tau_h: nats; threshold of the entropy.
        tau_v: nats squared; threshold of the varentropy, for version=2.
        k: tokens that a branching takes up.
        max_active: branches alive at once at most; by default the paper's 48, and 12 for version=1. A branching of
            version 2 that would go beyond it takes up fewer tokens (ours).
        entropy_temperature: of the distribution that entropy and varentropy are measured on; by default the paper's
            0.6, and for version=1 the sampling temperature.
        early_stop: also stop once 4 finished branches have an answer and 40 % of these agree: a rule of the paper's
            code that the paper does not mention; for more than 4 traces.
        version: of the paper, 2 or 1.
    """

    name: ClassVar[str] = "decoding-tree"
    summary: ClassVar[str] = "grows a tree that branches where the model wavers; the first branch to finish wins"
    paper: ClassVar[str] = "2511.00640 (DTS)"
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.TREE})
    # A lab response wavers only where a check may begin, between few tokens: a small varentropy, a small tree.
    on_lab: ClassVar[str] = "traces=3,tau_v=0.2,max_active=8"

    traces: PositiveInt = 1
    tau_h: NonNegativeFloat = 2.5
    tau_v: NonNegativeFloat = 1.5
    k: Annotated[int, Field(ge=2)] = 3
    max_active: Annotated[int, Field(ge=2)] | None = None
    entropy_temperature: PositiveFloat | None = None
    early_stop: bool = False
    version: Annotated[int, Field(ge=1, le=2)] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, acts, condition in (
            ("traces", self.version == 2, "version=2"),
            ("tau_v", self.version == 2, "version=2"),
            ("early_stop", self.traces > EARLY_STOP_ANSWERS, f"more than {EARLY_STOP_ANSWERS} traces"),
        ):
            if not acts and getattr(self, name) != getattr(type(self), name):
                raise MethodError(f"{self.name}: {name} acts with {condition} only; leave it out")

    @property
    def breadth(self) -> int:
        return self._cap

    async def respond(self, draft: Draft) -> None:
        if not draft.remaining:
            await draft.write()
            return
        sampling = replace(draft.sampling, max_tokens=draft.remaining)
        sketch = Sketch([Branch(None, -1, 0.0, sampling.seed, 0)])
        heat = self._entropy_temperature(sampling)
        async with draft.engine.tree(draft.sequence, sampling, top=self.k, entropy_temperature=heat) as tree:
            leaves = [tree.root]
            while True:
                following = self._follow(draft, sketch, leaves)
                if not following or self._settled(sketch.finished) or following[0][1].length == sampling.max_tokens:
                    break
                leaves = await tree.advance([Child(place, branch.token, branch.seed) for place, branch in following])
        chosen = self._choose(sketch)
        draft.accept(_generation(draft, chosen, tree.usage), branch_tokens=sketch.tokens - chosen.length)
        draft.events.extend(sketch.events_of(chosen))

    def _entropy_temperature(self, sampling: Sampling) -> float:
        if self.entropy_temperature is not None:
            return self.entropy_temperature
        if self.version == 2:
            return ENTROPY_TEMPERATURE
        if sampling.temperature == 0:
            raise MethodError(
                f"{self.name}: version=1 measures entropy at the sampling temperature, which is 0 here; "
                "give entropy_temperature"
            )
        return sampling.temperature

    @property
    def _cap(self) -> int:
        return MAX_ACTIVE[self.version] if self.max_active is None else self.max_active

    # -- one step

    def _follow(self, draft: Draft, sketch: Sketch, leaves: Sequence[Leaf]) -> list[tuple[int, Branch]]:
        """One more token for every active branch: the branches that go on, each with the place of what it follows."""
        following: list[tuple[int, Branch]] = []
        alive = len(sketch.active)
        for place, (branch, leaf) in enumerate(zip(sketch.active, leaves, strict=True)):
            taken = [(leaf.sampled, leaf.sampled_logprob)]
            if not sketch.frozen and self._wavers(leaf):
                taken = list(leaf.top.items())[: self._cap - alive + 1 if self.version == 2 else self.k]
                alive += len(taken) - 1
                sketch.note(
                    branch,
                    "branch",
                    entropy=leaf.entropy,
                    varentropy=leaf.varentropy,
                    tokens=[draft.text([token]) for token, _ in taken],
                    active=alive,
                )
                if self.version == 2 and alive >= self._cap:
                    sketch.frozen = True
                    sketch.note(branch, "freeze", active=alive)
            for number, (token, logprob) in enumerate(taken):
                # The likeliest keeps the random stream, so that a tree that never branches is `plain`.
                sketch.born += number > 0
                seed = derive_seed(draft.sampling.seed, f"branch/{sketch.born}") if number else branch.seed
                following.append((place, Branch(branch, token, branch.logprob + logprob, seed, branch.length + 1)))
        sketch.tokens += len(following)
        going_on = []
        for place, branch in following:
            ended_by = _ended_by(draft, branch)
            if ended_by is None:
                going_on.append((place, branch))
            else:
                answer = _answer(draft, branch, ended_by)
                sketch.finished.append(Finished(branch, answer))
                sketch.note(branch, "finished", answer=label(answer), logprob=branch.logprob)
        if len(going_on) > self._cap:
            going_on = self._prune(sketch, going_on)
        sketch.active = [branch for _, branch in going_on]
        return going_on

    def _wavers(self, leaf: Leaf) -> bool:
        if self.version == 1:
            return leaf.entropy > self.tau_h
        return leaf.entropy <= self.tau_h and leaf.varentropy > self.tau_v

    def _prune(self, sketch: Sketch, going_on: list[tuple[int, Branch]]) -> list[tuple[int, Branch]]:
        """The likeliest branches, as many as may live; the rest is dropped before it costs a forward pass."""
        order = sorted(range(len(going_on)), key=lambda place: -going_on[place][1].logprob)
        kept = [going_on[place] for place in sorted(order[: self._cap])]
        sketch.note(kept[0][1], "prune", dropped=len(going_on) - self._cap, active=self._cap)
        return kept

    def _settled(self, finished: Sequence[Finished]) -> bool:
        """Whether no more branches have to finish."""
        if len(finished) >= self.traces:
            return True
        answers = [canonical(one.answer) for one in finished if one.answer is not None]
        if not self.early_stop or len(answers) < EARLY_STOP_ANSWERS:
            return False
        return max(map(answers.count, answers)) >= EARLY_STOP_SHARE * len(answers)

    # -- the outcome

    def _choose(self, sketch: Sketch) -> Branch:
        """The branch to return."""
        finished = [one.branch for one in sketch.finished]
        if self.version == 1 or not finished:
            # Those of version 1 have finished together, so none is shorter than the others.
            return max(finished or sketch.active, key=lambda branch: branch.logprob)
        answers = [one.answer for one in sketch.finished]
        vote = majority(answers)
        chosen = finished[vote.winner or 0]
        if len(answers) > 1:
            without = answers.count(None)
            sketch.note(chosen, "vote", tally=vote.tally, without_answer=without, adopted=vote.winner or 0)
        return chosen


def _ended_by(draft: Draft, branch: Branch) -> int | str | None:
    """What ends a branch: its newest token, or a stop text that it completes; None where it goes on."""
    sampling = draft.sampling
    ends = branch.token in draft.engine.end_ids and not sampling.ignore_eos
    if ends or branch.token in sampling.stop_ids:
        return branch.token
    completed = (
        stop for stop in (*sampling.stop, *draft.stops.texts) if stop in draft.text(branch.last(len(stop.encode())))
    )
    stop = next(completed, None)
    if stop is None or stop in sampling.stop:
        return stop
    return draft.stop_in([*draft.ids, *branch.ids()])  # the caller's act in the answer alone


def _answer(draft: Draft, branch: Branch, ended_by: int | str) -> str | None:
    """What a finished branch answers."""
    ids = [*draft.ids, *branch.ids()]
    written = ids[:-1] if isinstance(ended_by, int) else ids
    answer = draft.engine.thinking.split(draft.engine.tokenizer, written, draft.prompt.state).answer
    if ended_by in draft.stops.texts:
        answer = answer.partition(str(ended_by))[0]
    return find_answer(answer, draft.problem.grader)


def _generation(draft: Draft, branch: Branch, usage: Usage) -> Generation:
    """A branch as what the model has written."""
    ids, ended_by = branch.ids(), _ended_by(draft, branch)
    if ended_by is None:
        return Generation(ids, "length", usage=usage)
    held_by = 1
    while isinstance(ended_by, str) and ended_by not in draft.text(ids[-held_by:]):
        held_by += 1
    return Generation(ids, "stop", ended_by, held_by, usage=usage)
