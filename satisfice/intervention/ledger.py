"""What a response cost: what it retains, and everything that was generated on the way and thrown away."""

import time
from dataclasses import replace
from typing import Literal

from satisfice.engines.base import Usage
from satisfice.intervention.response import Response
from satisfice.trace import Cost

Purpose = Literal["probe", "branch", "outline"]
"""What tokens were generated for that are not part of the response."""


class Ledger:
    """What one response has cost, whether it is complete or not.

    Invariant: every token that an engine generated counts exactly once, as retained where it is in the response, else
    under the purpose that it was thrown away for; every call of an engine counts, also one that failed. Each fork
    keeps a ledger of its own, which belongs to this one: what the fork wrote are branch tokens until it is adopted.

    Args:
        response: whose tokens are the retained ones.
        inherited: how many of them, the first, another response has paid for.
    """

    def __init__(self, response: Response, inherited: int = 0) -> None:
        self._response = response
        self.inherited = inherited
        self._started = time.perf_counter()
        self._usage = Usage()
        self._thrown_away: dict[Purpose, int] = {"probe": 0, "branch": 0, "outline": 0}
        self._forks: list[Ledger] = []
        self._adopted = False

    def count(self, usage: Usage) -> None:
        """Add what a call of an engine computed; its generated tokens are counted by where they go."""
        self._usage.add(replace(usage, generated=0))

    def count_failed(self, usage: Usage) -> None:
        """Add a call that failed: nothing of it is in the response."""
        self.count(usage)
        self.throw_away(usage.generated, "branch")

    def count_cancelled(self, tokens: int) -> None:
        """Add a call that was cancelled after so many tokens, which the response keeps."""
        self._usage.forward_passes += tokens

    def throw_away(self, tokens: int, purpose: Purpose) -> None:
        """Count generated tokens that are not in the response, or not any more."""
        self._thrown_away[purpose] += tokens

    def take_back(self, tokens: int) -> None:
        """Count the last tokens of the response as thrown away, before they are removed from it.

        Those that another response has paid for cost nothing here: this one branches off earlier.
        """
        own = len(self._response.ids) - self.inherited
        self.throw_away(min(tokens, own), "probe")
        self.inherited -= max(0, tokens - own)

    def fork(self, response: Response) -> "Ledger":
        """The ledger of a fork, whose tokens so far are those of this response."""
        fork = Ledger(response, inherited=len(response.ids))
        self._forks.append(fork)
        return fork

    def adopt(self, fork: "Ledger") -> int:
        """Retain what a fork wrote in place of what this response has written since; before the one becomes the other.

        Returns:
            how many tokens of this response that throws away.
        """
        assert fork in self._forks
        fork._adopted = True
        replaced = len(self._response.ids) - fork.inherited
        self.throw_away(replaced, "branch")
        return replaced

    def cost(self) -> Cost:
        """All of it, forks included."""
        thinking_tokens = self._response.tracker.thinking_tokens
        return Cost(
            thinking_tokens=thinking_tokens,
            answer_tokens=len(self._response.ids) - thinking_tokens,
            forced_tokens=len(self._response.forced),
            **self._beyond_retained(),
            seconds=time.perf_counter() - self._started,
        )

    def _beyond_retained(self) -> dict[str, int]:
        """Everything but the retained tokens, as fields of `Cost`."""
        paid = {f"{purpose}_tokens": tokens for purpose, tokens in self._thrown_away.items()}
        paid |= {
            "prefilled_tokens": self._usage.prefilled,
            "cached_tokens": self._usage.cached,
            "forward_passes": self._usage.forward_passes,
        }
        for fork in self._forks:
            for name, count in fork._beyond_retained().items():
                paid[name] += count
            if not fork._adopted:
                paid["branch_tokens"] += len(fork._response.ids) - fork.inherited
        return paid
