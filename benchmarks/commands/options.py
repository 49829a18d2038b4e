"""The options that several commands take, each declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

SUITE = ("suite", "data", "out")
PART = ("methods", "models", "seeds", "overrides")
"""Options that cut a suite down or change it."""


@dataclass(frozen=True)
class Options:
    """The values of the shared options; an option that the command does not take has its default."""

    suite: Annotated[str, typer.Option("--suite", help="A suite's name, or a YAML file.")] = "quick"
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the dataset's files, or to draw them into.")
    ] = None
    out: Annotated[Path, typer.Option("--out", help="Output folder.")] = Path("runs")
    engine: Annotated[str, typer.Option("--engine", help="ray, or local (this process).")] = "ray"
    address: Annotated[str | None, typer.Option("--address", help="Join the Ray cluster at this address.")] = None
    methods: Annotated[str, typer.Option("--methods", help="Only these methods, separated by commas.")] = ""
    models: Annotated[str, typer.Option("--models", help="Only these networks, separated by commas.")] = ""
    seeds: Annotated[str, typer.Option("--seeds", help="Only these seeds, separated by commas.")] = ""
    overrides: Annotated[list[str], typer.Option("--set", help="key=value over the suite's file; may be repeated.")] = (
        field(default_factory=list)
    )
    tracking_uri: Annotated[str | None, typer.Option("--tracking-uri", help="MLflow server to log to.")] = None
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", exists=True, file_okay=False, help="Folder of torchvision's weights files; else downloaded."
        ),
    ] = None
    bad_images: Annotated[
        int, typer.Option("--allow-bad-images", min=0, help="Leave out so many images that cannot be read.")
    ] = 0
    storage: Annotated[
        str | None,
        typer.Option("--storage", help="Keep results and checkpoints at this URL too (s3://..., gs://...)."),
    ] = None


Command = Callable[..., int]


def shared(*names: str, **defaults: Any) -> Callable[[Command], Command]:
    """Let a command take these options; it gets their values together, as its parameter `options`.

    names: fields of Options and, among them, the command's own options, in the order in which `--help` lists them;
    parameters that are not named come first. defaults: in place of those in Options.
    """

    def extend(command: Command) -> Command:
        own = dict(inspect.signature(command, eval_str=True).parameters)
        del own["options"]
        ours = {name: _parameter(name, defaults) for name in names if name not in own}
        ordered = [own[name] for name in own if name not in names] + [(own | ours)[name] for name in names]
        in_order = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in ordered]

        @wraps(command)
        def extended(**given: Any) -> int:
            options = Options(**{name: given.pop(name) for name in ours})
            return command(options=options, **given)

        extended.__signature__ = inspect.Signature(in_order)  # type: ignore[attr-defined]
        extended.__annotations__ = {parameter.name: parameter.annotation for parameter in in_order}
        return extended

    return extend


def _parameter(name: str, defaults: dict[str, Any]) -> inspect.Parameter:
    default = defaults.get(name, getattr(Options(), name))
    annotation = get_type_hints(Options, include_extras=True)[name]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
