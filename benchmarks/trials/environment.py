"""Where a trial ran: versions, hardware, threads, flags, commit; and the torch settings that make it repeatable."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.messages import SuiteError

SENT_FROM = "MPBENCH_SENT_FROM"
"""Environment variable for code sent without its git history: `source_state` of its checkout, as JSON."""

PACKAGES = (
    "torch",
    "torchvision",
    "numba",
    "llvmlite",
    "ray",
    "mlflow",
    "numpy",
    "scikit-learn",
    "scipy",
    "pandas",
)


def configure_torch(threads: int, device: str) -> None:
    """Fixed threads and deterministic kernels. Also in a worker whose framework has set its own threads."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    # On GPUs a few backward passes (adaptive pooling) have no deterministic form: there the promise is a warning.
    torch.use_deterministic_algorithms(True, warn_only=device.startswith("cuda"))
    # Deterministic mode also fills every new tensor with NaN: a pass over memory that no result depends on.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.startswith("cuda"):
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def require_compiler(device: str) -> None:
    """Raises SuiteError unless torch.compile finds the compiler that it needs for `device`."""
    variable, names = ("CC", ["cc", "gcc", "clang"]) if device.startswith("cuda") else ("CXX", ["g++", "clang++"])
    wanted = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([wanted] if wanted else names)):
        raise SuiteError(
            f"resources.compile needs a compiler ({' or '.join(names)}, or {variable}): install one, or set "
            "resources.compile=false"
        )


def describe(threads: int, device: str, *, compiled: bool = False) -> dict[str, Any]:
    """The environment as a record keeps it.

    quantizer: the code that quantizes on this device; with `compile`, fine-tuning went through torch.compile instead.
    """
    from methods.quantization.paths import path_on

    return {
        "python": platform.python_version(),
        **package_versions(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": device_name(device),
        "quantizer": path_on(device),
        "compile": compiled,
        **source_state(),
    }


@cache
def package_versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name(device)


@cache
def source_state() -> dict[str, Any]:
    """The commit of the code, and whether files differ from it; nulls outside a git checkout.

    Code that was sent here from a checkout has the state that its sender found.
    """
    if sent := os.environ.get(SENT_FROM):
        state: dict[str, Any] = json.loads(sent)
        return state
    root = Path(__file__).parents[2]

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}
