"""Thinking and answer: the markers that divide a response, and finding them while the tokens come in.

A reasoning model writes thinking, a closing marker, then its answer. The marker may be one special token
(`</think>` of Qwen3), several ordinary ones (`</think>` for a model that never saw it), or a whole phrase
(gpt-oss). It may be cut over tokens anywhere, or never come. So markers are matched on *text*: an automaton over
the bytes of the response, compiled once per tokenizer into a table `state x token -> state`. Splitting a finished
text, following a stream token by token and steering a whole batch on a GPU all read that one table, so they
cannot disagree.
"""

import codecs
import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

from satisfice.lazy import PreTrainedTokenizerBase, np
from satisfice.levels import FILE


class Phase(IntEnum):
    """Where a response is."""

    BEFORE = 0
    """Thinking has not been opened (yet)."""
    THINKING = 1
    """Inside thinking."""
    ANSWER = 2
    """Thinking is closed, or there was none; a model may open it again."""


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
        also_open, also_close: other spellings of the two markers, which are read and never written.
    """

    name: str
    open: str
    close: str
    opening: str
    closing: str
    newline_before_close: bool = True
    force_open: bool = False
    also_open: tuple[str, ...] = ()
    also_close: tuple[str, ...] = ()

    @property
    def openers(self) -> tuple[str, ...]:
        """The texts that open thinking."""
        return (self.open, *self.also_open)

    @property
    def closers(self) -> tuple[str, ...]:
        """The texts that close thinking or, where it was never opened, begin the answer."""
        return (self.close, *self.also_close)

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

        A directory that `satisfice train` wrote says it itself.

        Args:
            tokenizer: a tokenizer with the model's chat template.
            model_name: Hub id or path; needed for s1 models, whose tokenizer is that of their base.

        Raises:
            UnknownThinkingFormat: nothing known was found; the message shows how to pass a format.
        """
        name = model_name or tokenizer.name_or_path or ""
        # An adapter is loaded under the name of its base, with the tokenizer beside it.
        for place in (name, str(tokenizer.name_or_path or "")):
            if place and (written := _written(Path(place) / FILE)):
                return written
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
        """Token ids that close thinking after `text_so_far`, with an answer cue after it.

        A line break comes first where the format has one and the text does not end with one already; empty
        thinking needs none.
        """
        newline = self.newline_before_close and text_so_far != "" and not text_so_far.endswith("\n")
        return encode_after(tokenizer, ("\n" if newline else "") + self.closing + cue)

    def automaton(self, tokenizer: PreTrainedTokenizerBase) -> "MarkerAutomaton":
        """The compiled automaton for this tokenizer; compiled once, then served from a cache."""
        return _compiled(self.openers, self.closers, tokenizer, len(tokenizer))

    def render(
        self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], thinking: bool = True
    ) -> "Prompt":
        """The prompt for `messages` with the response about to begin.

        The phase at its end is read from what the template writes after the last message, so a marker inside a
        user's message changes nothing.

        Args:
            tokenizer: the model's tokenizer. Without a chat template, the prompt is the contents alone, each followed
                by an empty line, after the token that begins a text where the tokenizer writes one.
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
        return Prompt(text, list(_encoded_prompt(tokenizer, text, len(tokenizer))), state)

    def split(
        self, tokenizer: PreTrainedTokenizerBase, response_ids: Sequence[int], state: int | None = None
    ) -> "Split":
        """Divide a response into thinking and answer.

        Args:
            tokenizer: the model's tokenizer.
            response_ids: ids of everything after the prompt.
            state: the automaton's state at the end of the prompt (`Prompt.state`); None means before thinking.
        """
        tracker = ThinkingTracker(self.automaton(tokenizer), state)
        splitter = StreamSplitter(self, tokenizer, tracker.phase, tracker.state)
        for token in response_ids:
            tracker.push(token)
        pieces = [*splitter.push(decode(tokenizer, response_ids)), *splitter.rest()]
        thinking, answer = (
            "".join(text for phase, text in pieces if phase is part) for part in (Phase.THINKING, Phase.ANSWER)
        )
        return Split(tracker.span, thinking, answer, tracker.phase, tracker.thinking_tokens)


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
        span: start and end (exclusive) of thinking in the response's tokens; both markers are inside. Where thinking
            was opened again, from its first beginning to its last end.
        thinking: its text, without markers.
        answer: all other text, without markers; the whole response where there was no thinking.
        phase: the phase at the end of the response.
        thinking_tokens: those inside `span`, less those of answers between two stretches of thinking.
    """

    span: tuple[int, int]
    thinking: str
    answer: str
    phase: Phase
    thinking_tokens: int = field(default=0, compare=False)


def _written(path: Path) -> ThinkingFormat | None:
    """The format that a training wrote beside its weights, None where there is none.

    Raises:
        ValueError: the file cannot be read.
    """
    if not path.is_file():
        return None
    try:
        given = json.loads(path.read_text()).get("thinking")
        return ThinkingFormat(**{key.name: given[key.name] for key in fields(ThinkingFormat)}) if given else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not what satisfice wrote ({error}); remove it or train again") from error


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
            # A second message that thinks, and an answer without any before it.
            also_open=("<|end|><|start|>assistant<|channel|>analysis<|message|>",),
            also_close=("<|channel|>final<|message|>",),
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


@functools.lru_cache(maxsize=256)  # several responses, and several methods, begin with one prompt
def _encoded_prompt(tokenizer: PreTrainedTokenizerBase, text: str, size: int) -> tuple[int, ...]:
    return tuple(_encode(tokenizer, text))


def encode_after(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text` where it goes on from earlier text.

    Sentencepiece-like tokenizers put a space before the first word of whatever they encode; in the middle of a
    response that space would be wrong. So the text is encoded after a digit, whose tokens are cut off again.
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


UNCERTAIN = 4
"""Characters at the end of a text that one more token may still change: a character has four bytes at most."""
PENDING = 32
"""Tokens without a whole character after which the text before the last of them is given as it is."""


class TextStream:
    """The text of a sequence while its tokens come; a character that spans tokens is given once it is whole.

    Where the text of tokens is that of their bytes, one after the other, those are read: a call of the tokenizer costs
    twenty times as much. Otherwise tokens that never form a character are given as replacement characters, a few tokens
    late, so that each new token is read beside a bounded number of others.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._bytes = _plain_bytes(tokenizer, len(tokenizer))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # What a token reads like may depend on the one before it, so the last ones that were given are kept.
        self._given: list[int] = []
        self._shown = 0  # characters of the text of `_given` and `_new` that were given
        self._new: list[int] = []

    def push(self, token: int) -> str:
        """The text that one more token completes; "" where it ends inside a character."""
        if self._bytes is not None:
            return self._decoder.decode(self._bytes[token]) if token < len(self._bytes) else ""
        self._new.append(token)
        text = decode(self._tokenizer, [*self._given, *self._new])
        if not text.endswith("\ufffd"):
            return self._give(text)
        return self._give_up(text) if len(self._new) >= PENDING else ""

    def rest(self) -> str:
        """What is left of a character that was never completed."""
        if self._bytes is not None:
            return self._decoder.decode(b"", final=True)
        return self._give(decode(self._tokenizer, [*self._given, *self._new])) if self._new else ""

    def _give(self, text: str) -> str:
        piece = text[self._shown :]
        self._given, self._new = self._new, []
        self._shown = len(decode(self._tokenizer, self._given))
        return piece

    def _give_up(self, text: str) -> str:
        """What is certain of a text that ends in no character, whose tokens in the middle are forgotten.

        The last tokens say how the next one reads. The first ones are kept beside them, since some tokenizers call all
        bytes of a run wrong where one is.
        """
        kept = [*self._new[: PENDING // 4], *self._new[-PENDING // 4 :]]
        shorter = decode(self._tokenizer, [*self._given, *kept])
        if shorter[-2 * UNCERTAIN :] != text[-2 * UNCERTAIN :]:
            return ""
        piece = text[self._shown : -UNCERTAIN]
        self._new, self._shown = kept, len(shorter) - UNCERTAIN
        return piece


# -- the automaton


@dataclass(frozen=True, eq=False)
class MarkerAutomaton:
    """Which phase a response is in, as a table over tokens.

    Every phase has a state for each beginning of a marker. A marker that is complete leads to the first state of the
    phase that it begins, from whichever phase: thinking may be opened again after an answer, and a closing marker
    without an opening one ends thinking, because some templates open it in ways that a prompt does not show.

    Attributes:
        bytes_table: (S, 256) int16, next state for one byte of text.
        token_table: (S, V) int16, next state for one whole token; V is the highest id of the tokenizer plus one.
        phases: (S,) the `Phase` of each state.
        thinking_state: the state just after an opening marker.
        answer_state: the state just after a closing marker.
        matched: (S,) bytes of a marker that each state stands for.
        completes: (S,) by the byte that completes a marker in a state, the marker's length in bytes.
        tokens: (V,) the text of each token.
    """

    bytes_table: "np.ndarray"
    token_table: "np.ndarray"
    phases: "np.ndarray"
    thinking_state: int
    answer_state: int
    matched: list[int]
    completes: list[dict[int, int]]
    tokens: list[bytes]

    def phase(self, state: int) -> Phase:
        """The phase of a state."""
        return self._phases[state]

    # Read a byte or a token at a time, where a list is several times faster than an array.

    @functools.cached_property
    def _phases(self) -> list[Phase]:
        return [Phase(phase) for phase in self.phases.tolist()]

    @functools.cached_property
    def first_bytes(self) -> frozenset[int]:
        """The bytes that markers begin with."""
        return frozenset(np.flatnonzero(self.bytes_table[0] != 0).tolist())

    @functools.cached_property
    def plain(self) -> frozenset[int]:
        """The states inside thinking and the answer in which no marker is begun: most text begins and ends there."""
        return frozenset({self.thinking_state, self.answer_state})

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
        return self.run_bytes(text.encode(errors="surrogatepass"), state)

    def run_bytes(self, text: bytes, state: int = 0) -> int:
        """The state after reading the bytes of a text from `state`."""
        rows = self._bytes_rows
        for byte in text:
            state = rows[state][byte]
        return state

    def markers(self, text: bytes, state: int) -> Iterator[tuple[int, int, Phase, Phase]]:
        """The markers that `text` completes, read from `state`.

        Yields:
            the index after a marker, its length in bytes (a part of it may stand before `text`), and the phases before
            and after it.
        """
        rows, completes = self._bytes_rows, self.completes
        for end, byte in enumerate(text, start=1):
            before, state = state, rows[state][byte]
            if (found := completes[before]) and byte in found:
                yield end, found[byte], self._phases[before], self._phases[state]


class ThinkingTracker:
    """Follows one response token by token.

    Attributes:
        state: state of the automaton.
        phase: the phase after the tokens pushed so far.
        position: tokens pushed so far.
        spans: the stretches of thinking that are closed, each with its start and end (exclusive) in tokens; markers are
            inside. Most responses have one.
    """

    def __init__(self, automaton: MarkerAutomaton, state: int | None = None) -> None:
        self.automaton = automaton
        self.state = 0 if state is None else state
        self.phase = automaton.phase(self.state)
        self.position = 0
        self.spans: tuple[tuple[int, int], ...] = ()
        self._open: int | None = 0 if self.phase is Phase.THINKING else None  # where the open stretch begins
        self._held: tuple[int, ...] = ()  # lengths of the last tokens, as far as a marker may begin in them

    @property
    def end(self) -> int | None:
        """Index after the token that closed thinking last; None while it is open or still to come."""
        if self.phase is not Phase.ANSWER:
            return None
        return self.spans[-1][1] if self.spans else 0

    @property
    def span(self) -> tuple[int, int]:
        """Start and end (exclusive) of thinking so far, from its first beginning on; (0, 0) where there is none.

        Thinking starts with the response: what a model writes before its opening marker, and the marker itself,
        is counted as thinking. An answer between two stretches of thinking is inside.
        """
        spans = self._all_spans()
        return (spans[0][0], spans[-1][1]) if spans else (0, 0)

    @property
    def thinking_tokens(self) -> int:
        """Tokens of all stretches of thinking so far."""
        return sum(end - start for start, end in self._all_spans())

    def _all_spans(self) -> tuple[tuple[int, int], ...]:
        return self.spans if self._open is None else (*self.spans, (self._open, self.position))

    def push(self, token: int) -> Phase:
        """Read one more token and return the phase after it."""
        self.position += 1
        before, self.state = self.state, self.automaton.step(self.state, token)
        if self.state == before and not self.automaton.matched[before]:  # most tokens are no part of a marker
            return self.phase
        left, self.phase = self.phase, self.automaton.phase(self.state)
        if left is Phase.BEFORE and self.phase is not left:
            self._open = 0
        elif left is Phase.ANSWER and self.phase is Phase.THINKING:
            self._open = self._opened_at(before, token)
        if self._open is not None and self.phase is Phase.ANSWER:
            self.spans = (*self.spans, (self._open, self.position))
            self._open = None
        self._held = self._holding(token)
        return self.phase

    def _length(self, token: int) -> int:
        tokens = self.automaton.tokens
        return len(tokens[token]) if token < len(tokens) else 0

    def _holding(self, token: int) -> tuple[int, ...]:
        """Lengths of the newest tokens that hold the beginning of a marker."""
        held = (*self._held, self._length(token))
        while held and sum(held[1:]) >= self.automaton.matched[self.state]:
            held = held[1:]
        return held

    def _opened_at(self, before: int, token: int) -> int:
        """The place of the token in which the opening marker begins that `token` completes, read from `before`."""
        found = self.automaton.markers(self.automaton.tokens[token], before)
        outside = next(length - end for end, length, _, phase in found if phase is Phase.THINKING)
        place, held = self.position - 1, list(self._held)
        while outside > 0 and held:
            outside -= held.pop()
            place -= 1
        return max(place, self.spans[-1][1] if self.spans else 0)  # one token may hold the end of the last stretch too


class StreamSplitter:
    """Divides the text of a response into its parts while it comes, and leaves the markers out.

    What may turn out to be the beginning of a marker is kept until it is known. So is all text before the first
    marker, where thinking was not opened by the prompt: it is thinking if a marker comes, and the answer if none does.

    Args:
        thinking: the format.
        tokenizer: the model's tokenizer.
        phase: where the response begins.
        state: the automaton's own state there, where a marker may have begun in the prompt (`Prompt.state`).
    """

    def __init__(
        self, thinking: ThinkingFormat, tokenizer: PreTrainedTokenizerBase, phase: Phase, state: int | None = None
    ) -> None:
        automaton = self._automaton = thinking.automaton(tokenizer)
        self._state = (0, automaton.thinking_state, automaton.answer_state)[phase] if state is None else state
        self._kept = b""

    def push(self, text: str) -> list[tuple[Phase, str]]:
        """The pieces that are certain now, thinking and answer; none is empty."""
        automaton, pieces = self._automaton, []
        new = text.encode()
        if self._state in automaton.plain and automaton.first_bytes.isdisjoint(new) and not self._kept:
            return [(automaton.phase(self._state), text)] if text else []
        written, begin, known = self._kept + new, 0, len(self._kept)
        for end, length, before, _ in automaton.markers(new, self._state):
            part = Phase.ANSWER if before is Phase.ANSWER else Phase.THINKING
            pieces.append((part, written[begin : max(begin, known + end - length)]))
            begin = known + end
        self._state = automaton.run_bytes(new, self._state)
        phase = automaton.phase(self._state)
        settled = begin
        if phase is not Phase.BEFORE:
            settled = max(begin, len(written) - automaton.matched[self._state])
            pieces.append((phase, written[begin:settled]))
        self._kept = written[settled:]
        return [(part, piece.decode()) for part, piece in pieces if piece]

    def rest(self) -> list[tuple[Phase, str]]:
        """The last piece: what was kept for a marker that never came."""
        piece, self._kept = self._kept.decode(), b""
        thinking = self._automaton.phase(self._state) is Phase.THINKING
        return [(Phase.THINKING if thinking else Phase.ANSWER, piece)] if piece else []


def _prefix_automaton(patterns: Sequence[bytes]) -> "tuple[np.ndarray, list[int], list[int | None]]":
    """Aho-Corasick over a few patterns.

    Returns:
        (nodes, 256) transitions; how many bytes each node stands for; the longest pattern that each node completes, by
        its index, None where it completes none.
    """
    children: list[dict[int, int]] = [{}]
    depths = [0]
    ends: list[int | None] = [None]
    for index, pattern in enumerate(patterns):
        node = 0
        for byte in pattern:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
                depths.append(depths[node] + 1)
                ends.append(None)
            node = children[node][byte]
        ends[node] = index
    table = np.zeros((len(children), 256), dtype=np.int16)
    fallback = [0] * len(children)
    order = [0]
    for node in order:  # breadth first: a node's fallback is complete before its children need it
        if node:
            table[node] = table[fallback[node]]
            ends[node] = ends[fallback[node]] if ends[node] is None else ends[node]
        for byte, child in children[node].items():
            fallback[child] = int(table[node, byte]) if node else 0
            table[node, byte] = child
            order.append(child)
    return table, depths, ends


def _compile(openers: Sequence[bytes], closers: Sequence[bytes], tokens: list[bytes]) -> MarkerAutomaton:
    patterns = [*openers, *closers]
    table, depths, ends = _prefix_automaton(patterns)
    nodes = len(table)
    # The same nodes in every phase; whatever completes a marker goes to the first node of the phase that it begins.
    phases = np.repeat(np.array([Phase.BEFORE, Phase.THINKING, Phase.ANSWER]), nodes)
    whole = np.concatenate([table + phase * nodes for phase in range(3)]).astype(np.int16)
    completes: list[dict[int, int]] = [{} for _ in range(nodes)]
    for end, index in enumerate(ends):
        if index is not None:
            begins = Phase.THINKING if index < len(openers) else Phase.ANSWER
            whole[np.tile(table == end, (3, 1))] = begins * nodes
            for node, byte in np.argwhere(table == end).tolist():
                completes[node][byte] = len(patterns[index])
    return MarkerAutomaton(
        whole, _token_table(whole, tokens), phases, nodes, 2 * nodes, depths * 3, completes * 3, tokens
    )


def _token_table(bytes_table: "np.ndarray", tokens: list[bytes]) -> "np.ndarray":
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
    openers: tuple[str, ...], closers: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, vocabulary_size: int
) -> MarkerAutomaton:
    # The size is part of the cache's key alone: tokens may be added to a tokenizer after its first use.
    opening, closing = ([marker.encode() for marker in markers] for markers in (openers, closers))
    return _compile(opening, closing, token_bytes(tokenizer))


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


@functools.lru_cache(maxsize=16)
def _plain_bytes(tokenizer: PreTrainedTokenizerBase, vocabulary_size: int) -> list[bytes] | None:
    """`token_bytes` of a tokenizer that puts its tokens together and does nothing else; None of others."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if type(decoder).__name__ not in ("ByteLevel", "Fuse"):
        return None
    table = token_bytes(tokenizer)
    # A class of tokenizers may have a `decode` of its own, and a vocabulary may name bytes.
    whole = decode(tokenizer, range(len(table)))
    return table if whole == b"".join(table).decode(errors="replace") else None


def _byte_level_alphabet() -> dict[str, int]:
    """The printable stand-ins of byte-level BPE (as published with GPT-2), from character to byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(hidden)}
