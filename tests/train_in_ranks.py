"""What torchrun starts in tests/test_ranks.py: OUT NAME; with KILL_AT the second rank kills itself once at that step."""

import json
import os
import signal
import sys
from pathlib import Path

import torch

import elucidiff as ed
from elucidiff.training import Trainer
from test_resume import CONFIGURATIONS

if "KILL_AT" in os.environ and os.environ["RANK"] == "1" and not Path(os.environ["KILL_MARKER"]).exists():
    train_step = Trainer.train_step

    def killed(self):
        if self.step == int(os.environ["KILL_AT"]):
            Path(os.environ["KILL_MARKER"]).write_text(json.dumps({"rank": 1, "step": self.step}))
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(self)

    Trainer.train_step = killed

torch.set_num_threads(1)
config, data = CONFIGURATIONS[sys.argv[2]]
config = config.replace(out=sys.argv[1], accumulate=4, checkpoint_every=64)
ed.train(config, data=data(), resume=True)

tasks = Path("/proc/self/task")  # Linux; elsewhere nobody looks
left = sorted(name for t in tasks.glob("*/comm") if "gloo" in (name := t.read_text().strip()))
if left:
    sys.exit(f"threads of the process group outlive it, and may abort this process at its end: {', '.join(left)}")
