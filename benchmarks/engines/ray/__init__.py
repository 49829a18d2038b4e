"""Runs jobs as Ray Tune trials, first in, first out, here or on a cluster. The only folder that imports ray.

engine.py is the engine; cluster.py what it runs on; trials.py and ranks.py are the workers' side of a job of one
process and of several; forwarding.py passes what they report to the observer.
"""

import os
from pathlib import Path

# Read by ray when it is imported, which every module here does after this: in this process and, as they inherit its
# environment, in the workers.
os.environ.update(
    {
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # forwarding.py reports them in a line
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would end as if done, and the missing jobs be run again
        "RAY_AIR_NEW_OUTPUT": "0",
    }
)
# Once a user has a Ray token, as after any run here, `ray start` requires it; to join, the token mode must be on.
if any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or (
    Path.home().joinpath(".ray", "auth_token").exists()
):
    os.environ.setdefault("RAY_AUTH_MODE", "token")
