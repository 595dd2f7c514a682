"""A copy of the policy in half precision, from which rollouts are written.

Under mixed precision (`grpo.bf16`, `grpo.fp16`) the policy itself stays in float32, with an adapter beside each layer.
Decoding one token a row reads every weight and computes little, so a copy with the adapter merged and the weights in
the precision that the step computes in anyway writes the same distribution up to rounding in about half the time.
"""

from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel


class RolloutCopy:
    """The copy, made once and brought up to date before each batch of rollouts.

    Args:
        policy: the model that is trained, with or without an adapter.
        dtype: of the copy's weights.

    Attributes:
        network: the copy; its weights take no gradient.
    """

    def __init__(self, policy: PreTrainedModel | PeftModel, dtype: torch.dtype) -> None:
        below = _network(policy)
        kind = cast(Any, type(below))
        self.network: PreTrainedModel = kind._from_config(below.config, dtype=dtype).to(below.device)
        self.network.generation_config = below.generation_config
        self.network.requires_grad_(False).eval()

    @torch.no_grad()
    def follow(self, policy: PreTrainedModel | PeftModel) -> None:
        """Take over the weights of `policy`, adapters merged. The policy's own are left bit for bit as they are."""
        for name, module in _network(policy).named_modules():
            if isinstance(module, BaseTunerLayer):
                self._merged(name, module)
            elif "base_layer" not in name and "lora_" not in name:
                for key, value in module.named_parameters(recurse=False):
                    self.network.get_submodule(name).get_parameter(key).copy_(value)

    def _merged(self, name: str, module: Any) -> None:
        layer, target = module.get_base_layer(), self.network.get_submodule(name)
        # Merging and taking back again would leave a rounding error in the policy at each step.
        kept = layer.weight.clone()
        module.merge()
        for key, value in layer.named_parameters(recurse=False):
            target.get_parameter(key).copy_(value)
        module.unmerge()
        layer.weight.copy_(kept)


def _network(policy: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return cast(PreTrainedModel, policy.get_base_model()) if isinstance(policy, PeftModel) else policy
