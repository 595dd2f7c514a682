"""satisfice inside llama-cpp-python: controls as a logits processor of `Llama`.

    llm = Llama("model.gguf", n_ctx=8192)
    controls = ThinkingControls(llm, max_thinking_tokens=256)
    llm.create_chat_completion(messages, max_tokens=2000, logits_processor=LogitsProcessorList([controls]))

llama.cpp writes one sequence at a time. So this is the processor for Transformers' `generate` on a batch of one, with
the tokenizer that the GGUF file holds.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from satisfice.engines.control_setting import Control
from satisfice.hosts.transformers import HostError
from satisfice.hosts.transformers import ThinkingControls as OnTensors
from satisfice.thinking import ThinkingFormat


class ThinkingControls:
    """A control of ours in `Llama.create_chat_completion(..., logits_processor=...)` and its kin.

    Where the response begins is read from the prompt; ids that go on by one token from ids that were seen before
    continue the same response, any other ids begin a new call.

    Args:
        llm: the `llama_cpp.Llama` that it is for.
        tokenizer: the model's, where it is at hand; it is read from the GGUF file otherwise, which takes seconds.
        control, thinking, keys: see `satisfice.hosts.transformers.ThinkingControls`.
        max_tokens: as the call is given it; `answer_tokens` needs to know.

    Raises:
        HostError: `llm` drafts tokens, or the tokenizer is another model's.
        OptionError: a key does not exist or does not fit, or the model cannot obey it.
        UnknownThinkingFormat: the tokenizer does not show how the model marks thinking.
    """

    def __init__(
        self,
        llm: Any,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        control: Control | None = None,
        thinking: ThinkingFormat | str | None = None,
        max_tokens: int | None = None,
        **keys: Any,
    ) -> None:
        if llm.draft_model is not None:
            raise HostError(
                "ThinkingControls is not told which of the drafted tokens it is asked about: make the Llama without "
                "draft_model"
            )
        if tokenizer is None:
            tokenizer = tokenizer_of(llm.model_path)
        if len(tokenizer) > llm.n_vocab():
            raise HostError(
                f"the tokenizer has {len(tokenizer)} tokens and the model {llm.n_vocab()}: give the model's own, or "
                "none, for the one in its GGUF file"
            )
        self._inner = OnTensors(
            tokenizer, control, thinking=thinking, max_new_tokens=max_tokens, end_ids=[llm.token_eos()], **keys
        )

    def __call__(self, input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Edit next-token scores.

        Args:
            input_ids: (L,) the prompt with what has been written.
            scores: (V,) logits, a view into llama.cpp's own table of tokens.

        Returns:
            (V,) float32 new scores.
        """
        ids = torch.from_numpy(np.array(input_ids, dtype=np.int64))
        logits = torch.from_numpy(np.array(scores, dtype=np.float32))
        edited: np.ndarray = self._inner(ids[None], logits[None])[0].numpy()  # type: ignore[arg-type]
        return edited


def tokenizer_of(file: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file.

    Raises:
        HostError: Transformers cannot read it.
    """
    path = Path(file)
    try:
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)  # type: ignore[no-any-return]
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise HostError(
            f"cannot read the tokenizer of {file} ({' '.join(str(error).split())}): give the model's as tokenizer="
        ) from error
