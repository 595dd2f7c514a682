"""Thinking and answer: the markers that divide a response, and finding them while the tokens come in.

A reasoning model writes thinking, a closing marker, then its answer. The marker may be one special token
(`</think>` of Qwen3), several ordinary ones (`</think>` for a model that never saw it), or a whole phrase
(gpt-oss). It may be cut over tokens anywhere, or never come. So markers are matched on *text*: an automaton over
the bytes of the response, compiled once per tokenizer into a table `state x token -> state`. Splitting a finished
text, following a stream token by token and steering a whole batch on a GPU all read that one table, so they
cannot disagree.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase


class Phase(IntEnum):
    """Where a response is."""

    BEFORE = 0
    """Thinking has not been opened (yet)."""
    THINKING = 1
    """Inside thinking."""
    ANSWER = 2
    """Thinking is closed, or there is none to come."""


class UnknownThinkingFormat(ValueError):  # noqa: N818
    """The tokenizer does not tell how its model marks thinking."""


_END_OF_MESSAGE = "satisfice-end-of-message"
"""A text that no template writes, to find where the user's words end in a rendered prompt."""


@dataclass(frozen=True)
class ThinkingFormat:
    """How one model marks its thinking.

    Attributes:
        name: the family, or "custom".
        open: the opening marker, as text.
        close: the closing marker, as text.
        opening: what to write to open thinking: the marker and what follows it in training data.
        closing: what to write to close it: the marker and what follows it in training data.
        newline_before_close: whether a line break stands before the closing marker in training data.
        force_open: whether to open thinking in the prompt where the chat template does not.
    """

    name: str
    open: str
    close: str
    opening: str
    closing: str
    newline_before_close: bool = True
    force_open: bool = False

    @classmethod
    def custom(cls, open: str, close: str, force_open: bool = True) -> "ThinkingFormat":
        """A format given by hand, e.g. for a model that is only prompted to think.

        Raises:
            ValueError: a marker is empty, or one contains the other.
        """
        if not open or not close or open in close or close in open:
            raise ValueError(
                f"thinking markers must be two non-empty texts of which neither contains the other, "
                f"not {open!r} and {close!r}"
            )
        return cls("custom", open, close, f"{open}\n", f"{close}\n\n", force_open=force_open)

    @classmethod
    def parse(cls, text: str) -> "ThinkingFormat":
        """A format as written on the command line: a family name, or `OPEN,CLOSE`; spaces around a marker do not count.

        Raises:
            ValueError: it is neither.
        """
        if text in FAMILIES:
            return FAMILIES[text]
        open_marker, comma, close_marker = text.partition(",")
        if not comma:
            raise ValueError(
                f"thinking format {text!r} is neither a known family ({', '.join(FAMILIES)}) "
                "nor two markers separated by a comma such as '<think>,</think>'"
            )
        return cls.custom(open_marker.strip(), close_marker.strip())

    @classmethod
    def detect(cls, tokenizer: PreTrainedTokenizerBase, model_name: str = "") -> "ThinkingFormat":
        """The format of a tokenizer, from its vocabulary, its chat template and the model's name.

        Args:
            tokenizer: a tokenizer with the model's chat template.
            model_name: Hub id or path; needed for s1 models, whose tokenizer is that of their base.

        Raises:
            UnknownThinkingFormat: nothing known was found; the message shows how to pass a format.
        """
        name = model_name or tokenizer.name_or_path or ""
        vocabulary = tokenizer.get_vocab()
        templates = tokenizer.chat_template or ""  # a text, or several by name
        template = templates if isinstance(templates, str) else "".join(templates.values())
        for family in FAMILIES.values():
            # The markers of s1 begin with a token that every ChatML tokenizer has and prove nothing without the name.
            if family.name == "s1" and not re.search(r"(^|[/\\])s1(\.\d)?-", name.lower()):
                continue
            if all(part in vocabulary or part in template for part in _parts(family.close)):
                # A distilled R1 model may skip thinking altogether unless its response starts with the marker.
                force = family.force_open or ("<｜Assistant｜>" in template and family.close == "</think>")
                return replace(family, force_open=force)
        raise UnknownThinkingFormat(
            f"cannot tell how {name or 'this model'} marks its thinking: neither its vocabulary nor its chat template "
            f"holds a known marker. Name its family ({', '.join(FAMILIES)}) or pass its two markers: on the command "
            "line --thinking-format '<think>,</think>', in Python ThinkingFormat.custom('<think>', '</think>')"
        )

    # -- what the tokenizer makes of it

    def close_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids of the closing marker as the tokenizer writes it; one or several."""
        return encode_after(tokenizer, self.close)

    def forced_close(self, tokenizer: PreTrainedTokenizerBase, text_so_far: str, cue: str = "") -> list[int]:
        """Token ids that close thinking after `text_so_far`, with an answer cue behind it.

        A line break comes first where the format has one and the text does not end with one already; empty
        thinking needs none.
        """
        newline = self.newline_before_close and text_so_far != "" and not text_so_far.endswith("\n")
        return encode_after(tokenizer, ("\n" if newline else "") + self.closing + cue)

    def automaton(self, tokenizer: PreTrainedTokenizerBase) -> "MarkerAutomaton":
        """The compiled automaton for this tokenizer; compiled once, then served from a cache."""
        return _compiled(self.open, self.close, tokenizer, len(tokenizer))

    def render(
        self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], thinking: bool = True
    ) -> "Prompt":
        """The prompt for `messages` with the response about to begin.

        The phase at its end is read from what the template writes behind the last message, so a marker inside a
        user's message changes nothing.

        Args:
            tokenizer: the model's tokenizer. Without a chat template, the prompt is the contents alone, each followed
                by an empty line, behind the token that begins a text where the tokenizer writes one.
            messages: chat messages, `{"role", "content"}`; the last one is the user's.
            thinking: switches a hybrid model's template on or off; a template without a switch is left as it is.
        """
        if tokenizer.chat_template:
            # Both names of the switch are in use, and some templates leave thinking off where it is not passed.
            switch: dict[str, Any] = {"enable_thinking": thinking, "thinking": thinking}
            # Found by a mark at the end of the last message: comparing with the prompt without a response would do
            # for most templates, but some end that one in another way, and some begin a response in any case.
            marked = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + _END_OF_MESSAGE}]
            text, with_mark = (
                str(tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True, **switch))
                for chat in (messages, marked)
            )
            suffix = with_mark.rpartition(_END_OF_MESSAGE)[2]
        else:
            begins = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
            text = (tokenizer.bos_token if begins else "") + "".join(
                f"{message['content']}\n\n" for message in messages
            )
            suffix = ""
        automaton = self.automaton(tokenizer)
        state = automaton.run_text(suffix)
        if thinking and self.force_open and automaton.phase(state) is Phase.BEFORE:
            text += self.opening
            state = automaton.run_text(self.opening, state)
        return Prompt(text, _encode(tokenizer, text), state)

    def split(
        self, tokenizer: PreTrainedTokenizerBase, response_ids: Sequence[int], state: int | None = None
    ) -> "Split":
        """Divide a response into thinking and answer.

        Args:
            tokenizer: the model's tokenizer.
            response_ids: ids of everything after the prompt.
            state: the automaton's state at the end of the prompt (`Prompt.state`); None means before thinking.
        """
        automaton = self.automaton(tokenizer)
        tracker = ThinkingTracker(automaton, state)
        start = tracker.state
        for token in response_ids:
            tracker.push(token)
        text = decode(tokenizer, response_ids)
        if tracker.phase is Phase.BEFORE or automaton.phase(start) is Phase.ANSWER:
            return Split(tracker.span, "", text, tracker.phase)
        written = text.encode()
        opened, closed = automaton.marker_ends(written, start)
        # A marker that began in the prompt is only partly in the response.
        before = written[: max(opened - len(self.open.encode()), 0)]
        if closed is None:
            return Split(tracker.span, (before + written[opened:]).decode(), "", tracker.phase)
        thinking = before + written[opened : max(closed - len(self.close.encode()), 0)]
        return Split(tracker.span, thinking.decode(), written[closed:].decode(), tracker.phase)


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt: its text, its token ids and the marker automaton's state at its end."""

    text: str
    ids: list[int]
    state: int


@dataclass(frozen=True)
class Split:
    """A divided response.

    Attributes:
        span: start and end (exclusive) of thinking in the response's tokens; both markers are inside.
        thinking: its text, without markers.
        answer: the text after it, untouched; the whole response where there was no thinking.
        phase: the phase at the end of the response.
    """

    span: tuple[int, int]
    thinking: str
    answer: str
    phase: Phase


def _tags(name: str, open: str, close: str) -> ThinkingFormat:
    return ThinkingFormat(name, open, close, f"{open}\n", f"{close}\n\n")


FAMILIES: dict[str, ThinkingFormat] = {
    family.name: family
    for family in (
        # DeepSeek-R1 and its distills, Qwen3, QwQ, SmolLM3, Phi-4-reasoning, the lab, and most models since
        _tags("think-tags", "<think>", "</think>"),
        ThinkingFormat("magistral", "[THINK]", "[/THINK]", "[THINK]", "[/THINK]", newline_before_close=False),
        ThinkingFormat(
            "gpt-oss",
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
            newline_before_close=False,
        ),
        ThinkingFormat("gemma-4", "<|channel>thought", "<channel|>", "<|channel>thought\n", "<channel|>"),
        _tags("seed-oss", "<seed:think>", "</seed:think>"),
        _tags("exaone-deep", "<thought>", "</thought>"),
        # s1 fine-tunes keep the tokenizer of their base, so only the model's name gives them away.
        ThinkingFormat(
            "s1", "<|im_start|>think", "<|im_start|>answer", "<|im_start|>think\n", "<|im_start|>answer\n",
            force_open=True,
        ),
    )
}  # fmt: skip
"""Known families by name, in the order in which detection tries them."""


def _parts(marker: str) -> list[str]:
    """The special tokens a marker consists of, so that a phrase of several is found in a vocabulary."""
    return re.findall(r"<\|[^|]+\|>", marker) or [marker]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_after(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text` where it goes on from earlier text.

    Sentencepiece-like tokenizers put a space before the first word of whatever they encode; in the middle of a
    response that space would be wrong. So the text is encoded behind a digit, whose tokens are cut off again.
    """
    return list(_encoded_after(tokenizer, text, len(tokenizer)))


@functools.lru_cache(maxsize=256)  # probes ask for the same few texts again and again
def _encoded_after(tokenizer: PreTrainedTokenizerBase, text: str, size: int) -> tuple[int, ...]:
    digit = _encode(tokenizer, "0")
    ids = _encode(tokenizer, "0" + text)
    # Where the digit merged with the text, its tokens cannot be cut off.
    return tuple(ids[len(digit) :] if ids[: len(digit)] == digit else _encode(tokenizer, text))


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of `ids`, special tokens included and no space cleaned away."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


class TextStream:
    """The text of a sequence while its tokens come; a character that spans tokens is given once it is whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # What a token reads like may depend on the one before it, so the last ones that were given are kept.
        self._given: list[int] = []
        self._given_text = ""
        self._new: list[int] = []

    def push(self, token: int) -> str:
        """The text that one more token completes; "" where it ends inside a character."""
        self._new.append(token)
        text = decode(self._tokenizer, [*self._given, *self._new])
        return "" if text.endswith("\ufffd") else self._give(text)

    def rest(self) -> str:
        """What is left of a character that was never completed."""
        return self._give(decode(self._tokenizer, [*self._given, *self._new])) if self._new else ""

    def _give(self, text: str) -> str:
        piece = text[len(self._given_text) :]
        self._given, self._new = self._new, []
        self._given_text = decode(self._tokenizer, self._given)
        return piece


# -- the automaton


@dataclass(frozen=True, eq=False)
class MarkerAutomaton:
    """Which phase a response is in, as a table over tokens.

    States 0.. are partial matches before thinking, then partial matches of the closing marker inside thinking,
    then one final state for the answer. A closing marker without an opening one also ends thinking: some
    templates open thinking in ways that a prompt does not show.

    Attributes:
        bytes_table: (S, 256) int16, next state for one byte of text.
        token_table: (S, V) int16, next state for one whole token; V is the highest id of the tokenizer plus one.
        phases: (S,) the `Phase` of each state.
        thinking_state: the state just after the opening marker.
        answer_state: the final state.
    """

    bytes_table: np.ndarray
    token_table: np.ndarray
    phases: np.ndarray
    thinking_state: int
    answer_state: int

    def phase(self, state: int) -> Phase:
        """The phase of a state."""
        return self._phases[state]

    # Read a byte or a token at a time, where a list is several times faster than an array.

    @functools.cached_property
    def _phases(self) -> list[Phase]:
        return [Phase(phase) for phase in self.phases.tolist()]

    @functools.cached_property
    def _bytes_rows(self) -> list[list[int]]:
        return self.bytes_table.tolist()  # type: ignore[no-any-return]

    def step(self, state: int, token: int) -> int:
        """The state after one more token; ids beyond the tokenizer's own (a model's padding) stand for no text."""
        return int(self.token_table[state, token]) if token < self.token_table.shape[1] else state

    def run(self, ids: Sequence[int], state: int = 0) -> int:
        """The state after reading tokens from `state`."""
        for token in ids:
            state = self.step(state, token)
        return state

    def run_text(self, text: str, state: int = 0) -> int:
        """The state after reading `text` from `state`."""
        for byte in text.encode(errors="surrogatepass"):
            state = int(self.bytes_table[state, byte])
        return state

    @functools.cached_property
    def _matched(self) -> list[int]:
        """How many bytes of a marker each state stands for: its distance from the first state of its phase."""
        matched: dict[int, int] = {}
        for first in (0, self.thinking_state, self.answer_state):
            matched[first], order = 0, [first]
            for state in order:
                for reached in self._bytes_rows[state]:
                    if reached not in matched and self._phases[reached] is self._phases[first]:
                        matched[reached] = matched[state] + 1
                        order.append(reached)
        return [matched.get(state, 0) for state in range(len(self._phases))]

    def marker_ends(self, text: bytes, state: int = 0) -> tuple[int, int | None]:
        """Where in `text` the opening and the closing marker end.

        Returns:
            the index behind the opening marker, 0 where it does not come; the index behind the closing marker that
            ends thinking, None where it does not come.
        """
        table, phases = self._bytes_rows, self._phases
        opened = 0
        for index, byte in enumerate(text, start=1):
            before, state = state, table[state][byte]
            if phases[state] == Phase.ANSWER:
                return opened, index
            if phases[state] != phases[before]:
                opened = index
        return opened, None


class ThinkingTracker:
    """Follows one response token by token.

    Attributes:
        state: state of the automaton.
        phase: the phase after the tokens pushed so far.
        position: tokens pushed so far.
        end: index behind the token that completed the closing marker, None while it has not come.
    """

    def __init__(self, automaton: MarkerAutomaton, state: int | None = None) -> None:
        self.automaton = automaton
        self.state = 0 if state is None else state
        self.phase = automaton.phase(self.state)
        self.position = 0
        self.end: int | None = 0 if self.phase is Phase.ANSWER else None

    @property
    def span(self) -> tuple[int, int]:
        """Start and end (exclusive) of thinking so far; (0, 0) where there is none.

        Thinking starts with the response: what a model writes before its opening marker, and the marker itself,
        is counted as thinking.
        """
        if self.phase is Phase.BEFORE:
            return (0, 0)
        return (0, self.position if self.end is None else self.end)

    def push(self, token: int) -> Phase:
        """Read one more token and return the phase after it."""
        self.position += 1
        state = self.automaton.step(self.state, token)
        if state != self.state:  # most tokens are no part of a marker
            self.state, self.phase = state, self.automaton.phase(state)
            if self.end is None and self.phase is Phase.ANSWER:
                self.end = self.position
        return self.phase


class StreamSplitter:
    """Divides the text of a response into its parts while it comes, and leaves the markers out.

    What may turn out to be the beginning of a marker is kept until it is known.

    Args:
        thinking: the format.
        tokenizer: the model's tokenizer.
        phase: where the response begins.
    """

    def __init__(self, thinking: ThinkingFormat, tokenizer: PreTrainedTokenizerBase, phase: Phase) -> None:
        self._automaton = thinking.automaton(tokenizer)
        self._markers = {Phase.THINKING: len(thinking.open.encode()), Phase.ANSWER: len(thinking.close.encode())}
        self._state = (0, self._automaton.thinking_state, self._automaton.answer_state)[phase]
        self._kept = bytearray()

    def push(self, text: str) -> list[tuple[Phase, str]]:
        """The pieces that are certain now, each with its phase; none is empty."""
        automaton, pieces = self._automaton, []
        for byte in text.encode():
            before, self._state = self._state, automaton._bytes_rows[self._state][byte]
            self._kept.append(byte)
            phase = automaton.phase(self._state)
            if phase is not automaton.phase(before):
                del self._kept[-self._markers[phase] :]
                pieces += self._give(automaton.phase(before), len(self._kept))
        return pieces + self._give(automaton.phase(self._state), len(self._kept) - automaton._matched[self._state])

    def rest(self) -> list[tuple[Phase, str]]:
        """The last piece: the beginning of a marker that never came."""
        return self._give(self._automaton.phase(self._state), len(self._kept))

    def _give(self, phase: Phase, count: int) -> list[tuple[Phase, str]]:
        piece = self._kept[:count].decode()
        del self._kept[:count]
        return [(phase, piece)] if piece else []


def _prefix_automaton(patterns: Sequence[bytes]) -> tuple[np.ndarray, list[int]]:
    """Aho-Corasick over a few patterns: (nodes, 256) transitions and the node that completes each pattern."""
    children: list[dict[int, int]] = [{}]
    ends = []
    for pattern in patterns:
        node = 0
        for byte in pattern:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
            node = children[node][byte]
        ends.append(node)
    table = np.zeros((len(children), 256), dtype=np.int16)
    fallback = [0] * len(children)
    order = [0]
    for node in order:  # breadth first: a node's fallback is complete before its children need it
        if node:
            table[node] = table[fallback[node]]
        for byte, child in children[node].items():
            fallback[child] = int(table[node, byte]) if node else 0
            table[node, byte] = child
            order.append(child)
    return table, ends


def _compile(open_marker: bytes, close_marker: bytes, tokens: list[bytes]) -> MarkerAutomaton:
    before, (opened, closed) = _prefix_automaton([open_marker, close_marker])
    inside, (closed_inside,) = _prefix_automaton([close_marker])
    offset = len(before)
    answer = offset + len(inside)
    table = np.empty((answer + 1, 256), dtype=np.int16)
    table[:offset] = before
    table[:offset][before == opened] = offset
    table[:offset][before == closed] = answer
    table[offset:answer] = inside + offset
    table[offset:answer][inside == closed_inside] = answer
    table[answer] = answer
    phases = np.array([Phase.BEFORE] * offset + [Phase.THINKING] * len(inside) + [Phase.ANSWER])
    return MarkerAutomaton(table, _token_table(table, tokens), phases, offset, answer)


def _token_table(bytes_table: np.ndarray, tokens: list[bytes]) -> np.ndarray:
    """Next states for whole tokens, (S, V), from those for single bytes, (S, 256)."""
    text = np.frombuffer(b"".join(tokens), dtype=np.uint8)
    lengths = np.array([len(token) for token in tokens], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    states = np.arange(len(bytes_table), dtype=np.int16)
    table = np.repeat(states[:, None], len(tokens), axis=1)
    # One byte leaves few different states, so tokens that begin with the same one are read on from those alone:
    # all at once, position by position, the longest first so that those still being read stand together.
    with_text = np.flatnonzero(lengths)
    first_bytes = text[starts[with_text]]
    for byte in np.unique(first_bytes):
        group = with_text[first_bytes == byte]
        group = group[np.argsort(-lengths[group], kind="stable")]
        after_first, which = np.unique(bytes_table[:, byte], return_inverse=True)
        reached = np.repeat(after_first[:, None], len(group), axis=1)
        for position in range(1, lengths[group[0]]):
            count = np.searchsorted(-lengths[group], -position)
            reached[:, :count] = bytes_table[reached[:, :count], text[starts[group[:count]] + position]]
        table[:, group] = reached[which]
    return table


@functools.lru_cache(maxsize=16)
def _compiled(
    open_marker: str, close_marker: str, tokenizer: PreTrainedTokenizerBase, vocabulary_size: int
) -> MarkerAutomaton:
    # The size is part of the cache's key alone: tokens may be added to a tokenizer after its first use.
    return _compile(open_marker.encode(), close_marker.encode(), token_bytes(tokenizer))


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The bytes that each token id adds to a text, for byte-level, sentencepiece-like and word vocabularies.

    Ids that the tokenizer leaves free add nothing.
    """
    ids = tokenizer.get_vocab()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = repr(backend.decoder) if backend is not None else ""
    alphabet = _byte_level_alphabet()
    to_latin = str.maketrans({character: chr(byte) for character, byte in alphabet.items()})
    result = [b""] * (max(ids.values(), default=-1) + 1)
    for name, index in ids.items():
        if "ByteLevel" in decoder:
            # As the decoder does: a token with any other character (most added tokens) stands for itself.
            in_alphabet = alphabet.keys() >= set(name)
            result[index] = name.translate(to_latin).encode("latin-1") if in_alphabet else name.encode()
        elif match := re.fullmatch(r"<0x([0-9A-F]{2})>", name):
            result[index] = bytes([int(match[1], 16)])
        else:
            result[index] = name.replace("▁", " ").encode()
    return result


def _byte_level_alphabet() -> dict[str, int]:
    """The printable stand-ins of byte-level BPE (as published with GPT-2), from character to byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(hidden)}
