"""One server of the lab model for all tests of the whole way."""

import pytest
from with_vllm.server import Server

from satisfice.lab import WEIGHTS


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The lab model with levels beside its weights; it was not trained on them, so that only the prompt shows them."""
    folder = tmp_path_factory.mktemp("lab")
    for file in WEIGHTS.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "satisfice.json").write_text('{"levels": {"short": "Think briefly.", "long": "Think at length."}}')
    return folder


@pytest.fixture(scope="session")
def server(model, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log.txt"
    running = Server(
        model, log, "--max-model-len", "500", "--max-num-seqs", "16", "--max-num-batched-tokens", "64",
        "--block-size", "32", "--num-gpu-blocks-override", "20",  # room for one long response
        "--enable-prompt-tokens-details", "--middleware", "satisfice.vllm_plugin.Levels",
    )  # fmt: skip
    running.wait()
    yield running
    running.stop()
