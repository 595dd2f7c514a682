"""satisfice behind LiteLLM's proxy: what a `reasoning_effort` stands for, by model, in the proxy's own configuration.

    model_info: {satisfice: {low: {method: "budget-forcing:max_thinking=70"}, none: {method: no-thinking}}}
    callbacks: satisfice.hosts.litellm.efforts

Clients of every provider say `reasoning_effort`. The hook puts the fields that it stands for into the body, in its
place: a `method` for `satisfice serve`, `vllm_xargs` for vLLM with the plugin.
"""

from typing import Any

from litellm.exceptions import BadRequestError
from litellm.integrations.custom_logger import CustomLogger

KEY = "satisfice"
"""Under a model's `model_info`."""


class Efforts(CustomLogger):  # type: ignore[misc]
    """Replaces `reasoning_effort` once it is known which model answers, so that fallbacks have their own."""

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> dict[str, Any] | None:
        """The request as it is sent on.

        Args:
            kwargs: the request, and what the proxy knows of the model that it goes to.
            call_type: of LiteLLM.

        Returns:
            the request, changed; None leaves it as it is: the model has no efforts here, or the client asks for none.

        Raises:
            BadRequestError: the effort stands for nothing at this model, or the body says already how to think.
        """
        efforts = (kwargs.get("model_info") or {}).get(KEY)
        effort = kwargs.get("reasoning_effort")
        if not efforts or effort is None:
            return None
        if effort not in efforts:
            known = ", ".join(efforts)
            raise _refusal(kwargs, f"reasoning_effort {effort!r} means nothing to this model; it knows {known}")
        body = kwargs.get("extra_body") or {}
        if said := sorted(efforts[effort].keys() & {*body, *kwargs}):
            raise _refusal(kwargs, f"reasoning_effort and {said[0]} both say how to think; leave one of them out")
        changed = {name: value for name, value in kwargs.items() if name != "reasoning_effort"}
        return changed | {"extra_body": {**body, **efforts[effort]}}


def _refusal(kwargs: dict[str, Any], message: str) -> Exception:
    """Status 400; LiteLLM neither tries such a request again nor blames the model behind."""
    refusal: Exception = BadRequestError(message, str(kwargs.get("model")), "satisfice")
    return refusal


efforts = Efforts()
"""What a configuration names."""
