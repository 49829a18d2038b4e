"""The literature of what a suite compares, as BibTeX."""

from __future__ import annotations

from pathlib import Path

from benchmarks.suites.suite import Suite

SOURCE = Path(__file__).with_suffix(".bib")

OF_METHOD = {
    "uniform-lsq": ("esser2020lsq",),
    "hawq": ("dong2020hawqv2", "yao2021hawqv3"),
    "reversed": ("dong2020hawqv2",),
    "shuffled": ("dong2020hawqv2",),
    "differentiable": ("cai2020edmips",),
    "metamix": ("kim2024metamix",),
    "metamix-joint": ("kim2024metamix",),
}
OF_NETWORK = {
    "mobilenet_v2": "sandler2018mobilenetv2",
    "mobilenet_v3_small": "howard2019mobilenetv3",
    "mobilenet_v3_large": "howard2019mobilenetv3",
    "resnet18": "he2016resnet",
}
ALWAYS = ("esser2020lsq", "agarwal2021precipice")
"""The quantizer that all share, and the statistics of the report."""


def entries() -> dict[str, str]:
    """Key -> BibTeX entry, for every entry of the file."""
    blocks = SOURCE.read_text(encoding="utf-8").strip().split("\n\n")
    return {block.partition("{")[2].partition(",")[0]: block for block in blocks}


def bibliography(suite: Suite) -> str:
    """The entries of a suite's methods and networks, the quantizer and the statistics, in the file's order."""
    wanted = {key for entry in suite.methods for key in OF_METHOD.get(entry.name, ())}
    wanted |= {OF_NETWORK[model.name] for model in suite.models if model.name in OF_NETWORK} | set(ALWAYS)
    return "\n\n".join(entry for key, entry in entries().items() if key in wanted) + "\n"
