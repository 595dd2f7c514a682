"""Rollouts under mixed precision come from a copy that is the policy, adapters merged."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from training.setting import Recording, make_trainer, policy

from satisfice.training.rollout_copy import RolloutCopy


def adapted(tiny_config: Any, **settings: Any) -> Any:
    """A policy whose adapter has an effect."""
    model = get_peft_model(policy(tiny_config), LoraConfig(r=4, target_modules="all-linear", **settings))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    return model


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_the_copy_says_what_the_policy_with_its_adapter_says(tiny_config: Any, settings: dict[str, Any]) -> None:
    model = adapted(tiny_config, **settings).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy = RolloutCopy(model, torch.float32)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        untrained = copy.network(ids).logits
        copy.follow(model)
        said, expected = copy.network(ids).logits, model(ids).logits
        with model.disable_adapter():
            bare = model(ids).logits
    assert torch.allclose(said, expected, atol=1e-5)
    assert not torch.allclose(said, bare, atol=1e-2)
    assert not torch.allclose(untrained, said, atol=1e-2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_policy_without_an_adapter_is_followed_too(tiny_config: Any) -> None:
    model = policy(tiny_config).eval()
    copy = RolloutCopy(model, torch.bfloat16)
    for seed in (0, 1):
        model.load_state_dict(policy(tiny_config, seed).state_dict())
        copy.follow(model)
        for name, value in copy.network.named_parameters():
            assert value.dtype == torch.bfloat16
            assert torch.equal(value, model.get_parameter(name).to(torch.bfloat16))
    assert not any(value.requires_grad for value in copy.network.parameters())


def test_mixed_precision_writes_with_the_copy_of_the_weights_at_each_step(
    tmp_path: Any, tiny_config: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed: list[torch.Tensor] = []
    follow = RolloutCopy.follow

    def noting(copy: RolloutCopy, model: Any) -> None:
        follow(copy, model)
        followed.append(copy.network.get_submodule("model.layers.0.mlp.up_proj").weight.float().clone())

    monkeypatch.setattr(RolloutCopy, "follow", noting)
    settings: dict[str, Any] = {"prompts": 4, "max_steps": 2, "learning_rate": 0.01, "options": {"in_flight": True}}
    make_trainer(tmp_path / "half", policy(tiny_config), tokenizer, Recording(), bf16=True, **settings).train()
    first, second = followed
    assert not torch.equal(first, second)
    followed.clear()
    make_trainer(tmp_path / "whole", policy(tiny_config), tokenizer, Recording(), **settings).train()
    assert not followed
