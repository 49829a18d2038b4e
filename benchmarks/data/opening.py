"""The dataset that a spec names: one of ours (a file each) or a plug-in's. Only the named one is imported."""

from __future__ import annotations

from pathlib import Path

from benchmarks.data import Dataset
from benchmarks.suites.plugins import DATASETS, load_plugin, plugged
from benchmarks.suites.spec import DataSpec, ProceduralSpec


def load_dataset(spec: DataSpec, folder: Path | None, allow_bad_images: int = 0) -> Dataset:
    """Raises DataError for data that cannot be used.

    folder: where files are, or are kept once they are drawn; datasets without files ignore it.
    allow_bad_images: how many image files that cannot be read may be left out, as their folder's manifest names them.
    """
    if spec.dataset in plugged(DATASETS):
        brought: Dataset = load_plugin(DATASETS, spec.dataset)(spec, folder)
        return brought
    if spec.dataset == "digits":
        from benchmarks.data.digits import load_digits_dataset

        return load_digits_dataset(spec)
    assert folder is not None
    if spec.dataset.startswith("cifar"):
        from benchmarks.data.cifar import load_cifar

        return load_cifar(spec, folder)
    if isinstance(spec, ProceduralSpec):
        from benchmarks.data.procedural import load_procedural

        return load_procedural(spec, folder)
    from benchmarks.data.imagefolder import load_imagefolder

    return load_imagefolder(spec, folder, allow_bad_images)
