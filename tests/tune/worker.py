"""A worker on a study of tiny trials that tests may kill: FOLDER TRIALS [URL [SECONDS]]."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from aegis.tune import study as module
from aegis.tune.space import read_plan
from aegis.tune.study import StudyWorkers, prepare
from tests.tune.studies import config_in, quick_run, write_study


def slow_run(*args: Any, **named: Any) -> Path:
    time.sleep(random.uniform(0.2, 0.5))
    return quick_run(*args, **named)


def main(folder: Path, trials: str, url: str = "", stale_s: str = "60") -> None:
    module.run_trial = slow_run
    module._LOOK_S = 0.1
    tuning = prepare(read_plan(write_study(folder)), config_in(folder))
    StudyWorkers(replace(tuning, storage=url, stale_s=int(stale_s))).run(int(trials))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
