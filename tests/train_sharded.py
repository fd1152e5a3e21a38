"""What a rank of tests/test_sharded.py runs: RUNS, JSON of [folder, name of a configuration, its changes] one a run.

With KILL_AT the second rank kills itself once at that step.
"""

import json
import os
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import torch

import elucidiff as ed
from elucidiff.training import TrainingStopped
from elucidiff.training.ranks import together
from test_sharded import CONFIGURATIONS, Stop, kill_at

torch.set_num_threads(1)
runs = json.loads(sys.argv[1])
if "KILL_AT" in os.environ:
    kill_at(int(os.environ["KILL_AT"]), Path(os.environ["KILL_MARKER"]))
with together("cpu") if len(runs) > 1 else nullcontext():  # one process group serves once only
    for folder, name, changes in runs:
        stop = Stop(changes.pop("stop_at", None))
        config, data = CONFIGURATIONS[name]
        with suppress(TrainingStopped):
            ed.train(config.replace(out=folder, **changes), data=data(), resume=True, watchers=[stop])

tasks = Path("/proc/self/task")  # Linux; elsewhere nobody looks
left = sorted(name for t in tasks.glob("*/comm") if "gloo" in (name := t.read_text().strip()))
if left:
    sys.exit(f"threads of the process group outlive it, and may abort this process at its end: {', '.join(left)}")
