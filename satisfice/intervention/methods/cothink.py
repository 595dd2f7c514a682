"""CoThink (arXiv 2505.22017): an instruct model plans, and the reasoning model carries the plan out.

A reasoning model that is told the way has less reason to wander. The plan names the steps and nothing that is
computed in them, so the reasoner still does all the work.
"""

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from pydantic import PositiveInt

from satisfice.engines.base import Engine, EngineError, derive_seed
from satisfice.intervention.draft import Draft
from satisfice.intervention.method import Method
from satisfice.thinking import Phase

# Both wordings are ours, after what is known of the paper's prompts.
PLAN = (
    "You plan how a problem is solved; someone else carries the plan out. Break the solution into 2 to 4 short, "
    "numbered steps that say what to do in general terms. Write no numbers, no formulas and no answer, and nothing "
    "besides the steps."
)
CARRY_OUT = (
    "Solve the problem by carrying out exactly these steps: change none of them and add none. Show brief work for "
    "each step and put the final answer within \\boxed{{}}.\n\nProblem: {problem}\n\nSteps:\n{outline}"
)

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_STEP_NUMBER = re.compile(r"^[ \t*#]*(?:step[ \t]+)?\d+[.):]", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class CoThink(Method):
    """An outline by an instruct model, then one response of the reasoner that follows it.

    Nothing checks the outline: a wrong one misleads, and one that gives numbers away is passed on as it is; the
    event "outline" shows its text and the numbers in it. An empty outline is left out, and the reasoner gets the
    problem alone; so it does where the request for an outline does not fit into the context.

    Attributes:
        outliner: the name of the engine that writes the outline, among the companions of the reasoner's engine; or
            "self" (ours), the reasoner itself with its thinking switched off.
        max_outline: tokens of the outline at most. Ours; the paper's outlines have 154 to 264 on average.
    """

    name: ClassVar[str] = "cothink"
    summary: ClassVar[str] = "an instruct model outlines the solution, the reasoner carries it out"
    paper: ClassVar[str] = "2505.22017 (CoThink)"
    takes_control: ClassVar[bool] = True

    outliner: str = "self"
    max_outline: PositiveInt = 512

    def check(self, engine: Engine) -> None:
        super().check(engine)
        self._engine(engine)

    async def respond(self, draft: Draft) -> None:
        outline = await self._outline(draft, self._engine(draft.engine))
        if outline:
            draft.begin(question=CARRY_OUT.format(problem=draft.problem.prompt, outline=outline))
        await draft.write()

    def _engine(self, reasoner: Engine) -> Engine:
        if self.outliner == "self":
            return reasoner
        if self.outliner not in reasoner.companions:
            attached = ", ".join(reasoner.companions) or "none"
            raise EngineError(
                f"cothink: {reasoner.name} has no companion {self.outliner!r} (attached: {attached}); attach one with "
                f"--companion {self.outliner}=MODEL, from Python with engine.companions = "
                f"{{{self.outliner!r}: instruct_engine}}, or use outliner=self"
            )
        return reasoner.companions[self.outliner]

    async def _outline(self, draft: Draft, engine: Engine) -> str:
        """The outline, "" where none came; its tokens go into the cost of `draft`."""
        # Only the prompt of this second draft is used: what is generated after it belongs to the first.
        try:
            ask = Draft(engine, replace(draft.problem, system=PLAN), draft.sampling)
        except EngineError as error:  # the longer prompt does not fit, where the problem's own may
            draft.note("outline", by=engine.name, text="", tokens=0, refused=str(error))
            return ""
        ask.begin(thinking_on=False)
        if ask.phase is Phase.THINKING or (engine is draft.engine and not ask.closed):
            ask.close_thinking()  # the template has no switch
        sampling = replace(
            draft.sampling, max_tokens=self.max_outline, seed=derive_seed(draft.sampling.seed, "outline")
        )  # a stream of its own: the reasoner keeps the random numbers that it would have drawn
        generation = await draft.probe(ask.sequence, sampling, kind="outline", engine=engine)

        written = generation.ids[:-1] if isinstance(generation.stopped_by, int) else generation.ids
        split = engine.thinking.split(engine.tokenizer, [*ask.ids, *written], ask.prompt.state)
        outline = split.answer.strip()
        draft.note(
            "outline",
            by=engine.name,
            text=outline,
            tokens=len(generation.ids),
            cut_off=generation.finish == "length",
            numbers=_NUMBER.findall(_STEP_NUMBER.sub("", outline)),
        )
        return outline
