"""`python -m finetune_trainer prepare|train|publish [--config PATH]`: one stage of a job, as PID 1 of its pod.

`python -m finetune_trainer survey` looks at data and model without a job: see finetune_trainer.survey.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    if (sys.argv[1:] if arguments is None else list(arguments)) == ["survey"]:
        from finetune_trainer import survey  # its own road: no pod, no stage

        return survey.main()
    # Before a second of imports: the kernel throws away what PID 1 has no handler for, but keeps what it blocks. A pod that is
    # deleted as it starts would else live on until its grace period ends.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    import argparse

    from finetune_api.contract import RUN_CONFIG_PATH
    from finetune_api.status import STAGES

    from finetune_trainer import launch

    parser = argparse.ArgumentParser(prog="finetune_trainer", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--config", default=RUN_CONFIG_PATH, help="run config (JSON); default %(default)s")
    options = parser.parse_args(arguments)
    return launch.main(options.stage, options.config)


if __name__ == "__main__":
    sys.exit(main())
