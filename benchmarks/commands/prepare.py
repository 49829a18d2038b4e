"""What `prepare` does for each dataset before a suite runs, and what it prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console

from benchmarks.commands.exits import Exit
from benchmarks.commands.options import Options
from benchmarks.commands.progress import prepare_images, told
from benchmarks.commands.session import chosen_suite
from benchmarks.data.archives import unpack
from benchmarks.data.comparing import everything
from benchmarks.data.folders import CACHE, default_folder, find_folder, images_folder, shown
from benchmarks.data.listing import PARTS, Listing, advice, left_out_text, read_manifest
from benchmarks.data.preparing import cache_size, look_through, make_cache, remarks
from benchmarks.messages import SuiteError
from benchmarks.suites.spec import DataSpec, ProceduralSpec
from benchmarks.terminal import console, say_next, warn

_NAMED = 20


def execute(
    context: typer.Context, options: Options, archives: Path | None, cache: int | None, to: Path | None, check: bool
) -> Exit:
    """Prepare the suite's data. archives: folder of ImageNet's. cache: short side of copies, which go into `to`.

    check: prepare nothing, but compare every image with the manifest.
    """
    ready = Preparation(chosen_suite(options).data, console)
    folder = ready.run(options.data, archives, cache, to, check)
    if ready.wrong:
        return Exit.FAILED
    overrides = options.overrides if cache is None else [*options.overrides, f"data.short_side={cache}"]
    say_next(context, "doctor", data=folder, overrides=overrides)
    return Exit.WELL


@dataclass
class Preparation:
    """A dataset to prepare, and the terminal to print to.

    wrong: whether images were found that cannot be read, or that are not as they were prepared.
    """

    data: DataSpec
    console: Console
    wrong: bool = False

    def run(
        self, given: Path | None, archives: Path | None, cache: int | None, to: Path | None, check: bool = False
    ) -> Path | None:
        """Returns the folder to name with --data, if there is one. Raises SuiteError and DataError.

        check: prepare nothing, but hash every image file and compare it with the manifest.
        """
        if self.data.dataset == "imagefolder":
            if check:
                return self._check(given, archives, cache, to)
            return self._image_files(given, archives, cache, to)
        if archives or cache or to or check:
            raise SuiteError(
                f"--archives, --cache, --to and --check are for folders of image files, not for {self.data.dataset}"
            )
        if self.data.dataset.startswith("cifar"):
            from benchmarks.data.cifar import fetch_cifar

            fetch_cifar(self.data.dataset, given or default_folder(self.data.dataset))
            return given
        folder = find_folder(self.data.dataset, given)
        if isinstance(self.data, ProceduralSpec):
            assert folder is not None
            prepare_images(self.console, self.data, folder, self._say)
            self._say(f"{self.data.preset} lies in {shown(folder)}")
        else:
            self._say(f"{self.data.dataset} needs no preparation")
        return given

    def _image_files(self, given: Path | None, archives: Path | None, cache: int | None, to: Path | None) -> Path:
        if archives is not None:
            folder = given or default_folder(self.data.dataset)
            with told(self.console) as progress:
                unpack(archives, folder, progress)
        else:
            found = find_folder(self.data.dataset, given)
            assert found is not None
            folder = found
        with told(self.console) as progress:
            listing = look_through(folder, progress)
        self._describe(folder, listing)
        if cache is None:
            return folder
        place = to or folder / CACHE.format(cache)
        size = cache_size(folder, listing, cache, place)
        self._say(f"copies with a short side of {cache}: about {size.needed / 1e9:.2f} GB into {shown(place)}")
        with told(self.console) as progress:
            copies = make_cache(folder, listing, cache, place, progress, warn)
        self._describe(place, copies)
        return folder if to is None else place

    def _check(self, given: Path | None, archives: Path | None, cache: int | None, to: Path | None) -> Path:
        if archives is not None:
            raise SuiteError("--check looks at what is prepared, --archives prepares it: use one after the other")
        folder = find_folder(self.data.dataset, given)
        assert folder is not None
        place = to or (images_folder(folder, self.data.short_side) if cache is None else folder / CACHE.format(cache))
        listing = read_manifest(place)
        with told(self.console) as progress:
            changed = everything(place, listing, progress)
        for path, why in sorted(changed.items())[:_NAMED]:
            self._say(f"changed: {shown(path)}: {why}")
        if changed:
            self.wrong = True
            self._say(
                f"{len(changed)} images in {shown(place)} are not as they were prepared; put them back, or have them "
                f"prepared again: {advice(place, cache)}"
            )
        else:
            count = sum(map(listing.count, PARTS))
            self._say(f"{shown(place)}: all {count:,} images are as they were prepared; digest {listing.digest[:16]}")
        return folder if to is None else to

    def _describe(self, folder: Path, listing: Listing) -> None:
        counts = " and ".join(f"{listing.count(part):,} in {part}" for part in PARTS)
        classes = len(listing.files) // len(PARTS)
        self._say(f"{shown(folder)}: {classes} classes, {counts}; digest {listing.digest[:16]}")
        for remark in remarks(listing):
            self._say(f"note: {remark}")
        if text := left_out_text(listing.left_out):
            self._say(text)
        bad = listing.unreadable or {}
        for path, why in sorted(bad.items())[:_NAMED]:
            self._say(f"unreadable: {shown(path)}: {why}")
        if bad:
            self.wrong = True
            self._say(
                f"{len(bad)} images cannot be read; replace them and prepare again, or run with "
                f"--allow-bad-images {len(bad)}"
            )

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False)
