"""satisfice in lighteval: the file for `lighteval custom`, and nothing else.

    lighteval custom lab@budget-forcing:max_thinking=70 satisfice/hosts/lighteval.py TASKS

What stands before the @ is what `satisfice compare` takes as MODEL, what stands after it a method; so results are filed
under both. Settings of the engine come from the environment.
"""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from lighteval.models.abstract_model import LightevalModel, ModelConfig
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.prompt_manager import PromptManager
from lighteval.tasks.requests import Doc
from lighteval.utils.cache_management import SampleCache
from transformers import PreTrainedTokenizerBase

from satisfice.engines.loading import opened_engine
from satisfice.intervention import parse_method
from satisfice.intervention.method import together
from satisfice.runs.experiment import sample_seed
from satisfice.server.protocol import ChatRequest
from satisfice.trace import Trace

SETTINGS = "SATISFICE_ENGINE"
"""The environment variable with the engine and its settings, as JSON: {"engine": "vllm", "dtype": "bfloat16"}."""


class SatisficeModel(LightevalModel):  # type: ignore[misc]
    """A model and a method. lighteval takes the one class of this kind that a file holds.

    Args:
        config: lighteval's; `model_name` is MODEL or MODEL@METHOD.

    Raises:
        ValueError: there is no such method, engine or setting, or the engine cannot load the model or serve the method.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        model, _, spelled = config.model_name.partition("@")
        self._method = parse_method(spelled or "plain")
        self._opened = ExitStack()
        settings = _settings(os.environ)
        self._engine = self._opened.enter_context(
            opened_engine(settings.pop("engine", "transformers"), model, **settings)
        )
        try:
            self._method.check(self._engine)
        except BaseException:
            self._opened.close()
            raise
        self._cache = SampleCache(config)  # lighteval tells it which tasks there are; nothing is read from it
        self._prompts = PromptManager(use_chat_template=True, system_prompt=config.system_prompt)

    def cleanup(self) -> None:
        """Close the engine."""
        self._opened.close()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        return self._engine.tokenizer

    @property
    def add_special_tokens(self) -> bool:
        """The chat template has them."""
        return False

    @property
    def max_length(self) -> int:
        """Of a sequence, prompt and response."""
        return self._engine.context_length

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """A response to each question, or several where its metric asks for samples, all side by side.

        The sampling is the model's own, as everywhere in satisfice, and not greedy: reasoning models repeat themselves
        then. Stop sequences act in the answer and sleep while the model thinks.

        Raises:
            Refusal: a question is no text.
            EngineError: the engine cannot serve it.
        """
        return asyncio.run(self._respond(docs))

    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        """Not to be had.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "satisfice writes responses and gives no likelihoods of choices: take the generative form of the task"
        )

    loglikelihood_rolling = loglikelihood

    async def _respond(self, docs: Sequence[Doc]) -> list[ModelResponse]:
        return await together(*(self._answer(doc) for doc in docs))

    async def _answer(self, doc: Doc) -> ModelResponse:
        messages = self._prompts.prepare_prompt_api(doc)
        body = {
            "model": "model",
            "messages": messages,
            "stop": doc.stop_sequences,
            "max_tokens": self.config.generation_parameters.max_new_tokens or doc.generation_size,
        }
        chat = ChatRequest.read(json.dumps(body).encode())
        default = self._engine.default_sampling
        said = chat.sampling(default, max(default.max_tokens, chat.max_tokens or 0))
        problem = replace(chat.problem(), id=doc.id)
        traces: list[Trace] = await together(
            *(
                self._method.solve(
                    self._engine,
                    problem,
                    replace(default, **said, seed=sample_seed(0, f"{doc.task_name}/{doc.id}", sample)),
                    stops=chat.stops,
                )
                for sample in range(doc.num_samples)
            )
        )
        return ModelResponse(
            input=messages,
            input_tokens=traces[0].prompt_ids,
            text=[trace.answer.strip() for trace in traces],
            output_tokens=[trace.response_ids for trace in traces],
            reasonings=[trace.thinking.strip() or None for trace in traces],
        )


def _settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """Raises ValueError where the variable is no JSON object."""
    written = environment.get(SETTINGS) or "{}"
    try:
        found = json.loads(written)
    except ValueError as error:
        raise ValueError(f"{SETTINGS} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f'{SETTINGS} must be a JSON object such as {{"engine": "vllm"}}, not {written}')
    return found
