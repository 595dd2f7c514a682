"""Losses that compare with the untrained model: TokenSqueeze's on pairs, O1-Pruner's on weighted samples."""

from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from trl import DPOTrainer, SFTTrainer

from satisfice.training.supervised_recipe import LengthDPO, OfflineClip

# -- pairs


def length_dpo(
    chosen: Tensor, rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor, loss: LengthDPO
) -> Tensor:
    """-log sigma(beta (chosen - rejected) -+ length log(rejected_tokens / chosen_tokens)), one for each pair.

    Args:
        chosen: log pi/ref of the chosen responses, (B,), in nats.
        rejected: that of the rejected ones.
        chosen_tokens: their lengths, (B,).
        rejected_tokens: those of the rejected ones.
        loss: the parameters.
    """
    longer = torch.log(rejected_tokens / chosen_tokens)
    offset = loss.length * (longer if loss.sign == "plus" else -longer)
    return -F.logsigmoid(loss.beta * (chosen - rejected) + offset)


class LengthDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """`preference` parts of the length-aware preference and the rest imitation of the chosen responses.

    Takes rows that are token ids already: "prompt_ids", "chosen_ids" and "rejected_ids".
    """

    def __init__(self, *args: Any, loss: LengthDPO, **options: Any) -> None:
        self.length_loss = loss
        super().__init__(*args, **options)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **options: Any) -> Dataset:
        return dataset

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch whose first half are chosen responses and whose second half the rejected ones."""
        mask = inputs["completion_mask"]
        labels = inputs["input_ids"].masked_fill(mask == 0, -100)
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=labels,
            use_cache=False,
            fused_lm_head=True,
        )
        logps = outputs.log_probs.sum(dim=1)  # 0 where there is no label
        reference = self.model if self.ref_model is None else self.ref_model
        references = torch.cat(self.compute_ref_log_probs(reference, inputs))
        tokens = mask[:, 1:].sum(dim=1).clamp(min=1)
        chosen_tokens, rejected_tokens = tokens.chunk(2)
        chosen_logps, _ = logps.chunk(2)
        chosen, rejected = (logps - references).chunk(2)
        preferring = length_dpo(chosen, rejected, chosen_tokens, rejected_tokens, self.length_loss).mean()
        imitating = -(chosen_logps / chosen_tokens).mean()
        share = self.length_loss.preference
        loss = share * preferring + (1 - share) * imitating
        mode = "train" if self.model.training else "eval"
        seen = {
            "loss/preference": preferring,
            "loss/imitation": imitating,
            "rewards/margins": self.length_loss.beta * (chosen - rejected).mean(),
            "rewards/accuracies": (chosen > rejected).float().mean(),
            "tokens/chosen": chosen_tokens.float().mean(),
            "tokens/rejected": rejected_tokens.float().mean(),
        }
        for name, value in seen.items():
            self._metrics[mode][name].append(self.accelerator.gather(value.detach()).mean().item())
        return (loss, outputs) if return_outputs else loss


# -- weighted samples


def offline_clip(logps: Tensor, references: Tensor, tokens: Tensor, weights: Tensor, loss: OfflineClip) -> Tensor:
    """-min(r R, clip(r) R), one for each response.

    Args:
        logps: log-likelihood of each response, (B,), in nats.
        references: that of the reference model.
        tokens: their lengths, (B,).
        weights: R, (B,).
        loss: the parameters.
    """
    difference = logps - references
    ratio = torch.exp(difference / tokens if loss.ratio == "token" else difference)
    clipped = ratio.clamp(1 - loss.clip, 1 + loss.clip)
    return -torch.minimum(ratio * weights, clipped * weights)


class _Collator:
    """Pads rows as TRL does, and keeps what the loss needs of each."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.inner(examples)
        for name in ("weight", "reference"):
            batch[name] = torch.tensor([example[name] for example in examples], dtype=torch.float32)
        return batch


class OfflineClipTrainer(SFTTrainer):  # type: ignore[misc]
    """O1-Pruner's loss, one term a response, whatever its length.

    Rows are token ids with a "weight" and a "reference", the log-likelihood under the untrained model; see
    `reference_logps`.
    """

    def __init__(self, *args: Any, loss: OfflineClip, **options: Any) -> None:
        self.clip_loss = loss
        super().__init__(*args, **options)
        collator: Any = self.data_collator
        self.data_collator: Any = _Collator(collator)
        # Responses weigh equally, so the trainer is to divide by the number of micro-batches, not of tokens.
        self.model_accepts_loss_kwargs = False

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "labels", "weight", "reference"]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the responses of a batch."""
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["labels"],
            use_cache=False,
            fused_lm_head=True,
        )
        tokens = (inputs["labels"][:, 1:] != -100).sum(dim=1).clamp(min=1)
        logps = outputs.log_probs.sum(dim=1)
        weights, references = inputs["weight"], inputs["reference"]
        losses = offline_clip(logps, references, tokens, weights, self.clip_loss)
        mode = "train" if self.model.training else "eval"
        ratio = torch.exp((logps.detach() - references) / tokens)
        outside = ((ratio - 1).abs() > self.clip_loss.clip).float()
        seen = {"ratio": ratio.mean(), "ratio/outside": outside.mean(), "weight": weights.mean()}
        for name, value in seen.items():
            self._metrics[mode][name].append(self.accelerator.gather(value.detach()).mean().item())
        loss = losses.mean()
        return (loss, outputs) if return_outputs else loss


@torch.no_grad()
def reference_logps(model: Any, examples: list[dict[str, Any]]) -> list[float]:
    """Log-likelihood of the response of each example under a model, in nats.

    Args:
        model: the untrained one.
        examples: with "input_ids" and "labels".
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    found = []
    for example in examples:
        ids = torch.tensor([example["input_ids"]], device=device)
        labels = torch.tensor(example["labels"][1:], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        losses = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        found.append(-float(losses))
    model.train(training)
    return found
