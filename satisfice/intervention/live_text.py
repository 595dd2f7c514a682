"""What is shown of a response while it is written."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from satisfice.engines.base import Engine
from satisfice.thinking import Prompt, TextStream, ThinkingTracker

if TYPE_CHECKING:
    from satisfice.intervention.method import Watch


class LiveText:
    """Passes the text of a response on to whoever watches, and holds back what may still be taken back.

    Invariant: what has been shown, then what is held back, is the response as far as it was given to `show`, without
    end-of-text tokens; no text that was shown is ever taken back. Without a watcher nothing is kept.

    Args:
        engine: whose tokenizer reads the tokens.
        prompt: what the response follows.
        watch: called with each piece of text and the phase that it belongs to; None where nobody watches.
    """

    def __init__(self, engine: Engine, prompt: Prompt, watch: "Watch | None") -> None:
        self.watch = watch
        self._engine = engine
        self._stream = TextStream(engine.tokenizer)
        self._held_back: list[int] = []
        self._tentative = 0
        self._withheld = False
        self.begin(prompt)

    def begin(self, prompt: Prompt) -> None:
        """Follow another prompt; for a response without tokens."""
        self._shown = ThinkingTracker(self._engine.thinking.automaton(self._engine.tokenizer), prompt.state)

    def hold_back_for(self, stops: Sequence[str]) -> None:
        """Hold back as much as a method may take back that stops at one of these texts.

        Those are the tokens that hold it, and one after them: a token has at least one byte. A method that writes on
        without such a stop has decided on what there is.
        """
        self._tentative = max(self._tentative, *(len(stop.encode()) + 1 for stop in stops)) if stops else 0

    def hold_all_back(self) -> None:
        """Show nothing more until `show_rest`."""
        self._withheld = True

    def show(self, ids: Sequence[int]) -> None:
        """Take in the next tokens of the response, and show the text of those that nothing can take back any more."""
        if self.watch is None:
            return
        self._held_back.extend(ids)
        settled = 0 if self._withheld else max(0, len(self._held_back) - self._tentative)
        certain, self._held_back = self._held_back[:settled], self._held_back[settled:]
        for token in certain:
            if token not in self._engine.end_ids:
                phase = self._shown.phase
                self._shown.push(token)
                if text := self._stream.push(token):
                    self.watch(phase, text)

    def take_back(self, tokens: int) -> None:
        """Never show the last tokens, as far as they are held back."""
        del self._held_back[max(0, len(self._held_back) - tokens) :]

    def show_rest(self) -> None:
        """Show all that is held back: the response is complete."""
        self._tentative, self._withheld = 0, False
        self.show(())
        if self.watch is not None and (text := self._stream.rest()):
            self.watch(self._shown.phase, text)
