"""A caller's stop texts: they sleep while the model thinks and end its answer, or they end the text wherever they come.

Thinking repeats what answers are stopped at, such as "Question:" or an empty line, so a stop that acted there would
leave a response without an answer. The text that a stop acts on is therefore the one that the caller gets to read as
the answer: without markers and without the white space before it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stops:
    """Stop texts, and where they act.

    Attributes:
        texts: none of them is empty.
        in_thinking: whether they act on everything that is written, markers included, and not on the answer alone.
    """

    texts: tuple[str, ...] = ()
    in_thinking: bool = False

    def __bool__(self) -> bool:
        return bool(self.texts)

    def find(self, text: str) -> tuple[int, str] | None:
        """Where the stop begins that is complete first, and which; None where there is none.

        What is complete first does not depend on how the text was cut into pieces; of two that end together, the longer
        one counts.
        """
        found = [(place + len(stop), place, stop) for stop in self.texts if (place := text.find(stop)) >= 0]
        if not found:
            return None
        _, place, stop = min(found)
        return place, stop

    def begun(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a stop."""
        longest = max(map(len, self.texts), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            end = text[len(text) - length :]
            if any(len(stop) > length and stop.startswith(end) for stop in self.texts):
                return length
        return 0


NO_STOPS = Stops()


class StopFilter:
    """Passes on a text that comes in pieces, up to the first stop, and holds back what may become one.

    Attributes:
        stopped: whether the stop has come; nothing is passed on any more.
    """

    def __init__(self, stops: Stops) -> None:
        self.stopped = False
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> str:
        """What is certain with the next piece."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        text, self._held = self._held + text, ""
        if (found := self._stops.find(text)) is not None:
            self.stopped = True
            return text[: found[0]]
        certain = len(text) - self._stops.begun(text)
        self._held = text[certain:]
        return text[:certain]

    def rest(self) -> str:
        """What was held back for a stop that never came."""
        rest, self._held = self._held, ""
        return rest
