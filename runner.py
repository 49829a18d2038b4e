"""Compare mixed-precision quantization methods: `python runner.py --suite quick`.

Reads a suite, plans its trials, hands them to an engine, and reports. `python runner.py --help` lists the commands.
"""

# What commands there are and what they take; what each does is in benchmarks/commands, in the file of its name.
# They are imported when they are called, so that `--help` answers at once.

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from benchmarks.commands.exits import Exit
from benchmarks.commands.options import PART, SUITE, Options, shared
from benchmarks.data.folders import DataError
from benchmarks.engines import EngineError
from benchmarks.engines.storage import StorageError
from benchmarks.messages import SuiteError, unknown
from benchmarks.records.record import RecordError
from benchmarks.terminal import errors
from methods import BrokenPluginError, UnknownMethodError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.command()
@shared(*SUITE, "engine", "address", *PART, "retry", "tracking_uri", "weights", "bad_images", "storage")
def run(
    context: typer.Context,
    options: Options,
    retry: Annotated[str | None, typer.Option("--retry", help="`failed`: run failed trials again.")] = None,
) -> Exit:
    """Run a suite and report; what is done already is not done again."""
    from benchmarks.commands.run import execute

    return execute(context, options, retry)


@app.command()
@shared(*SUITE, "engine", "address", *PART, "shares", "weights", "bad_images")
def sweep(
    options: Options,
    shares: Annotated[
        str, typer.Option("--shares", help="Of the suite's compute, separated by commas.")
    ] = "0.25,0.5,1,2",
) -> Exit:
    """Run a suite at several shares of its compute, and say whether the order of methods depends on it."""
    from benchmarks.commands.sweep import execute

    return execute(options, shares)


@app.command("list")
def list_everything(as_json: JsonOption = False) -> Exit:
    """List suites, methods, data sets and networks."""
    from benchmarks.commands.list import execute

    return execute(as_json=as_json)


@app.command()
@shared(*SUITE, *PART, "ids", "as_json", "measure", "gap", "weights", "bad_images", "storage")
def plan(
    context: typer.Context,
    options: Options,
    ids: Annotated[bool, typer.Option("--ids", help="Print the ids of missing trials, one a line.")] = False,
    as_json: JsonOption = False,
    measure: Annotated[bool, typer.Option("--measure", help="Time a step of each kind here: hours, disk.")] = False,
    gap: Annotated[float | None, typer.Option("--gap", help="Points: how many seeds show such a difference?")] = None,
) -> Exit:
    """Show a suite's trials, ceilings in BOPs, and what is done, without running anything."""
    from benchmarks.commands.plan import execute

    return execute(context, options, ids=ids, as_json=as_json, measure=measure, gap=gap)


@app.command()
@shared(*SUITE, *PART, "storage", "records")
def report(
    context: typer.Context,
    options: Options,
    records: Annotated[
        Path | None, typer.Option("--records", help="Archive or folder of them, not those in OUT.")
    ] = None,
) -> Exit:
    """Build a suite's report from its records."""
    from benchmarks.commands.report import execute

    return execute(context, options, records)


@app.command()
@shared(*SUITE, *PART, "weights", "bad_images", "storage")
def trial(
    context: typer.Context,
    options: Options,
    trial_id: Annotated[str, typer.Argument(metavar="TRIAL", help="An id from `plan --ids`.")],
) -> Exit:
    """Run one trial in this process: for job arrays without Ray."""
    from benchmarks.commands.trial import execute

    return execute(context, options, trial_id)


@app.command()
@shared(*SUITE, *PART, "bad_images")
def evaluate(
    options: Options,
    trial_id: Annotated[str, typer.Argument(metavar="TRIAL", help="A trial's id, or its beginning.")],
) -> Exit:
    """Score a trial's kept network on the test images again, and set it against its record."""
    from benchmarks.commands.evaluate import execute

    return execute(options, trial_id)


@app.command()
@shared(*SUITE, *PART, "reference")
def verify(
    context: typer.Context,
    options: Options,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="Archive or folder of records to hold ours to.")
    ] = None,
) -> Exit:
    """Set a suite's records against published numbers and against the records shipped with this repository."""
    from benchmarks.commands.verify import execute

    return execute(context, options, reference)


@app.command()
@shared("suite", "out", "data", *PART)
def merge(
    context: typer.Context,
    options: Options,
    sources: Annotated[list[Path], typer.Argument(help="Output folders, folders of records, or archives of them.")],
) -> Exit:
    """Join records that others made of a suite into an output folder, and report."""
    from benchmarks.commands.merge import execute

    return execute(context, options, sources)


@app.command("mlflow-sync")
@shared(*SUITE, *PART, "tracking_uri")
def mlflow_sync(options: Options) -> Exit:
    """Rebuild the MLflow view of a suite from its records."""
    from benchmarks.commands.mlflow_sync import execute

    return execute(options)


@app.command()
@shared("suite", "data", "archives", "cache", "to", "check", "overrides", suite="imagenet-full")
def prepare(
    context: typer.Context,
    options: Options,
    archives: Annotated[Path | None, typer.Option("--archives", help="Folder of ImageNet's three archives.")] = None,
    cache: Annotated[int | None, typer.Option("--cache", help="Make copies with this short side, in pixels.")] = None,
    to: Annotated[Path | None, typer.Option("--to", help="Folder for the copies; else DIR/cache-PIXELS.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Hash every image and compare it with the manifest.")] = False,
) -> Exit:
    """Get a suite's images ready: unpack, look at each of them, make smaller copies, draw, download."""
    from benchmarks.commands.prepare import execute

    return execute(context, options, archives, cache, to, check)


@app.command()
@shared(*SUITE, "overrides", "weights", "bad_images")
def doctor(context: typer.Context, options: Options) -> Exit:
    """Say what will not work here, and what to do about it."""
    from benchmarks.commands.doctor import execute

    return execute(context, options)


@app.command()
def check(
    method: str,
    settings: Annotated[list[str], typer.Option("--set", help="key=value, an option of the method.")] = [],  # noqa: B006
    only: Annotated[
        str, typer.Option("--only", help="Only questions with these words, such as `ceiling or gradients`.")
    ] = "",
) -> Exit:
    """Have a method, registered or a plug-in, sit the exam that all methods sit."""
    from benchmarks.commands.check import execute

    return execute(method, settings, only)


USER_ERRORS = (SuiteError, DataError, RecordError, EngineError, StorageError, UnknownMethodError, BrokenPluginError)
UsageError: Any = typer.BadParameter.__bases__[0]
"""click's: an unknown option or command, a value that is no number. Newer versions of typer carry click inside."""


def main(arguments: Sequence[str]) -> int:
    """Run the command line; `run` is the command where none is named. Returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    if not arguments or (arguments[0].startswith("-") and arguments[0] != "--help"):
        arguments = ["run", *arguments]
    commands = list(get_command(app).commands)  # type: ignore[attr-defined]
    if not arguments[0].startswith("-") and arguments[0] not in commands:
        what = unknown("command", arguments[0], commands)
        errors.print(f"error: {what}; --help says what each does", markup=False)
        return Exit.WRONG_USE
    try:
        code: int = app(args=list(arguments), standalone_mode=False) or Exit.WELL
    except USER_ERRORS as error:
        errors.print(f"error: {error}", markup=False)
        return Exit.WRONG_USE
    except UsageError as error:
        what = error.format_message().rstrip(".")
        errors.print(f"error: {what}; --help lists commands and options", markup=False)
        return Exit.WRONG_USE
    except OSError as error:
        errors.print(
            f"error: {error}; make room or put it right, and run the same command again: it goes on", markup=False
        )
        return Exit.FAILED
    except (KeyboardInterrupt, typer.Abort):
        code = Exit.STOPPED
    if code == Exit.STOPPED:  # some versions of typer make an exit code of a KeyboardInterrupt
        errors.print("stopped; run the same command again, it goes on where it was")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
