"""One problem: a question with a gold answer."""

from dataclasses import dataclass

MATH_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""What is commonly asked of reasoning models, in the user turn after the question."""


def usual_instruction(problems: str) -> str:
    """The instruction for a problem set by name: none for lab and words, whose models never saw one, else the usual."""
    return "" if problems.startswith(("lab:", "words:")) else MATH_INSTRUCTION


@dataclass(frozen=True)
class Problem:
    """A question with a gold answer.

    Attributes:
        id: unique within its problem set.
        prompt: the question, as the user turn of a chat.
        answer: the gold answer, as the set gives it.
        source: the name of the problem set.
        grader: the grader that fits the answer: "math", "numeric", "exact", "choice" or "reasoning-gym:NAME".
        system: the system turn of the chat, where there is one.
        history: earlier turns of the chat, each a role and what it said, between the system turn and the question.
    """

    id: str
    prompt: str
    answer: str
    source: str = ""
    grader: str = "math"
    system: str = ""
    history: tuple[tuple[str, str], ...] = ()

    def messages(self, question: str | None = None) -> list[dict[str, str]]:
        """The chat as a template takes it, with `question` in place of the problem's own where it is given."""
        turns = [("system", self.system)] if self.system else []
        turns += [*self.history, ("user", self.prompt if question is None else question)]
        return [{"role": role, "content": content} for role, content in turns]
