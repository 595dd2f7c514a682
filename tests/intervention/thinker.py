"""A scripted model that thinks a given text, answers, and plays a given part after the cue of a probe."""

from collections.abc import Callable, Mapping

from intervention.scripted import Script, ScriptedEngine

Part = Callable[[str, str], Mapping[str, float]]
"""From the response before the cue and what was written after it to the next-token distribution."""

ANSWER = "\n\nThe answer is \\boxed{3}."
SURE = 1 - 1e-9
OPENED = "<think>\n"


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def count(tokenizer, text):
    return len(ids_of(tokenizer, text))


def play(tokenizer, *distributions: Mapping[str, float]) -> Part:
    """The same distributions at every probe, one a token, then the end of text."""

    def part(before, after):
        place = count(tokenizer, after)
        return distributions[place] if place < len(distributions) else {tokenizer.eos_token: SURE}

    return part


def thinker(tokenizer, thinking: str, parts: Mapping[str, Part], answer: str = ANSWER) -> Script:
    """Thinks `thinking` (closing marker included, where it closes at all), then gives `answer`.

    Thinking that was closed early is answered too. After the last token of `thinking` the text ends.
    """
    planned = ids_of(tokenizer, thinking)
    closing = ids_of(tokenizer, answer)

    def script(text):
        response = text.rpartition("<|assistant|>")[2].removeprefix(OPENED)
        for cue, part in parts.items():
            before, found, after = response.rpartition(cue)
            if found:
                return part(before, after)
        inside, closed, after = response.partition("</think>")
        plan, so_far = (closing, after) if closed else (planned, inside)
        place = count(tokenizer, so_far)
        following = plan[place] if place < len(plan) else tokenizer.eos_token_id
        return {tokenizer.convert_ids_to_tokens(following): SURE}

    return script


class RecordingEngine(ScriptedEngine):
    """Also keeps the control of every call, and how much of a cancelled call was written."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.controls = []
        self.under_way = 0

    async def generate(self, prompt_ids, sampling, **options):
        self.controls.append((self.tokenizer.decode(list(prompt_ids)), options.get("control")))
        self.under_way += 1
        try:
            return await super().generate(prompt_ids, sampling, **options)
        finally:
            self.under_way -= 1

    def probes(self, cue):
        """The response up to the end of the cue, and what was written, of every call that went on after a cue."""
        return [
            (text.rpartition("<|assistant|>")[2].removeprefix(OPENED), written)
            for text, _, written in self.calls
            if cue in text.rpartition("<|assistant|>")[2]
        ]
