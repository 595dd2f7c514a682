"""The lab's model behind a server of the completions protocol: what a real one does with `logit_bias`, in a test."""

from typing import Any

import torch
from engines.fake_server import FakeServer
from transformers import AutoModelForCausalLM

from satisfice.lab import WEIGHTS


class LabServer(FakeServer):
    """Writes greedily what the model finds likeliest, less or more what a bias says."""

    known: dict[tuple[int, ...], torch.Tensor] = {}  # noqa: RUF012 -- of all servers: they ask for the same again
    model: Any = None

    def next_token(self, ids: list[int], new: list[int], body: dict[str, Any]) -> int | None:
        whole = (*ids, *new)
        if whole not in self.known:
            if LabServer.model is None:
                LabServer.model = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
            with torch.inference_mode():
                self.known[whole] = LabServer.model(torch.tensor([whole])).logits[0, -1].clone()
        logits = self.known[whole].clone()
        for token, bias in (body.get("logit_bias") or {}).items():
            logits[int(token)] += bias
        return int(logits.argmax())
