"""Run by `test_two_processes.py`, alone and under torchrun: the same rows trained on with every loss."""

import json
import sys
from pathlib import Path

import torch
from training.setting import leave

from satisfice.training.arguments import leave_process_group
from satisfice.training.supervised import train_supervised
from satisfice.training.supervised_recipe import check_supervised

torch.set_num_threads(1)


def main(plans: Path, out: Path) -> None:
    for name, plan in json.loads(plans.read_text()).items():
        train_supervised(check_supervised(plan), out / name, say=lambda sentence: None)
    leave_process_group()
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
