"""satisfice inside `vllm serve`: thinking that each request of a server may shorten, stretch or bound.

Installing satisfice beside vLLM is all it takes: vLLM finds the processor by its entry point. What a request may ask
for is in `options`; `prompts` finds out where its response begins; `table` runs the controls of all live requests;
`processor` is the one class that both of vLLM's model runners accept; `levels` is the part that has to come before
the prompt is written, a middleware. Only `processor` imports vLLM.
"""

from satisfice.vllm_plugin.levels import Levels

__all__ = ["Levels"]
