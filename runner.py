"""Compare mixed-precision quantization methods: `python runner.py --suite quick`.

Reads a suite, plans its trials, hands them to an engine, and reports. `python runner.py --help` lists the commands.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.commands.run import engine_named, run_missing, say_amiss, tracker_for
from benchmarks.commands.session import Session, assignment, check_writable, open_session, shares_of
from benchmarks.data.folders import DataError
from benchmarks.engines import EngineError, run_jobs
from benchmarks.engines.storage import Storage, StorageError
from benchmarks.events import Outcome
from benchmarks.messages import SuiteError, unknown
from benchmarks.records.record import Record, RecordError, Records
from benchmarks.suites.rows import MethodEntry, options_of
from benchmarks.suites.suite import load_suite, suite_names
from benchmarks.terminal import command_line, console, errors, print_columns, say_next, warn
from methods import BrokenPluginError, UnknownMethodError, known_methods, load_method

if TYPE_CHECKING:
    from reports.findings.comparison import Comparison

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)

FAILED, WRONG_USE, UNVERIFIED_CLAIM, STOPPED = 1, 2, 3, 130

SuiteOption = Annotated[str, typer.Option("--suite", help="A suite's name, or a YAML file.")]
DataOption = Annotated[Path | None, typer.Option("--data", help="Folder of the dataset's files, or to draw them into.")]
OutOption = Annotated[Path, typer.Option("--out", help="Output folder.")]
MethodsOption = Annotated[str, typer.Option("--methods", help="Only these methods, separated by commas.")]
ModelsOption = Annotated[str, typer.Option("--models", help="Only these networks, separated by commas.")]
SeedsOption = Annotated[str, typer.Option("--seeds", help="Only these seeds, separated by commas.")]
SetOption = Annotated[list[str], typer.Option("--set", help="key=value over the suite's file; may be repeated.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
EngineOption = Annotated[str, typer.Option("--engine", help="ray, or local (this process).")]
AddressOption = Annotated[str | None, typer.Option("--address", help="Join the Ray cluster at this address.")]
TrackingOption = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow server to log to.")]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights", exists=True, file_okay=False, help="Folder of torchvision's weights files; else downloaded."
    ),
]
BadImagesOption = Annotated[
    int, typer.Option("--allow-bad-images", min=0, help="Leave out so many images that cannot be read.")
]
StorageOption = Annotated[
    str | None, typer.Option("--storage", help="Keep results and checkpoints at this URL too (s3://..., gs://...).")
]
RetryOption = Annotated[str | None, typer.Option("--retry", help="`failed`: run failed trials again.")]

DEFAULT_OUT = Path("runs")


@app.command()
def run(
    context: typer.Context,
    suite: SuiteOption = "quick",
    data: DataOption = None,
    out: OutOption = DEFAULT_OUT,
    engine: EngineOption = "ray",
    address: AddressOption = None,
    methods: MethodsOption = "",
    models: ModelsOption = "",
    seeds: SeedsOption = "",
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    retry: RetryOption = None,
    tracking_uri: TrackingOption = None,
    weights: WeightsOption = None,
    bad_images: BadImagesOption = 0,
    storage: StorageOption = None,
) -> None:
    """Run a suite and report; what is done already is not done again."""
    if engine not in ("ray", "local"):
        raise SuiteError(unknown("engine", engine, ["ray", "local"]))
    if retry not in (None, "failed"):
        raise SuiteError(unknown("value of --retry", str(retry), ["failed"]))
    session = open_session(
        suite,
        out,
        data,
        methods,
        models,
        seeds,
        overrides,
        engine=engine,
        weights=weights and weights.resolve(),
        allow_bad_images=bad_images,
        storage=storage,
    )
    check_writable(out)
    for warning in session.plan.warnings:
        warn(warning)
    kept = None if storage is None else Storage.at(storage)
    if kept:
        console.print(f"{kept.fetch(session.jobs, session.workspace)} results fetched from {storage}", markup=False)
    if retry:
        failed = session.forget_failures()
        if kept:
            kept.forget(failed, session.workspace)
    lost: dict[str, Outcome] = {}
    if session.missing():
        if kept:  # float starts from before there was a storage, for other nodes
            kept.keep((job for job in session.jobs if not job.is_trial), session.workspace)
        lost = run_missing(session, engine_named(engine, address, session.suite), tracking_uri)
    if kept:
        kept.keep(session.jobs, session.workspace)
    _finish(context, session, lost)


def _finish(context: typer.Context, session: Session, lost: dict[str, Outcome]) -> None:
    """Report, say where everything is, and exit with 1 if some trial failed or was lost, with 2 if by wrong use."""
    _report(session)
    _warn_of_part(context)
    amiss = say_amiss(session, lost)
    _say_where(context, session)
    _stop_at_wrong_use(lost)
    if amiss:
        console.print("some trials failed or were lost: run the same command again (--retry failed for failed ones)")
        raise typer.Exit(FAILED)


def _stop_at_wrong_use(lost: dict[str, Outcome]) -> None:
    """Exit with 2 where all that was lost would be lost again."""
    if lost and all(outcome.wrong_use for outcome in lost.values()):
        raise typer.Exit(WRONG_USE)


def _say_where(context: typer.Context, session: Session) -> None:
    from benchmarks.records.tracking import default_uri, has_runs

    folder, out = session.workspace.folder, session.workspace.out
    console.print(f"report:  {session.workspace.report / 'index.html'}", markup=False)
    console.print(f"records: {session.workspace.records.folder}", markup=False)
    if has_runs(out):
        console.print(f"mlflow:  mlflow ui --backend-store-uri {default_uri(out)}", markup=False)
    networks = folder / "networks"
    if networks.is_dir():
        console.print(f"again:   {command_line(context, 'evaluate TRIAL')}  (networks in {networks})", markup=False)


def _report(session: Session, *, always: bool = False) -> None:
    """Build the report unless the one there is of the same records."""
    from benchmarks.suites.spec import digest

    records = session.workspace.records
    found = {trial.id: record.checksum for trial in session.plan.trials if (record := records.get(trial.id))}
    shown = {"records": found, "disputed": sorted(record.checksum for record in records.disputed())}
    suite = session.suite.model_dump(mode="json")
    stamp = digest({"suite": suite, "trials": [trial.id for trial in session.plan.trials], **shown})
    stamp_file = session.workspace.report / ".stamp"
    if not always and stamp_file.exists() and stamp_file.read_text(encoding="utf-8") == stamp:
        return
    from reports.build import build_report
    from reports.findings.comparison import ComparisonError

    try:
        report = build_report(session.plan, records, session.workspace.report)
    except ComparisonError as error:
        raise SuiteError(str(error)) from error
    for warning in report.warnings:
        warn(warning)
    stamp_file.write_text(stamp, encoding="utf-8")


def _warn_of_none(session: Session) -> None:
    if len(session.missing()) == len(session.plan.trials):
        warn(f"no trial of {session.suite.suite} has a record in {session.workspace.records.folder}; is --out right?")


CUTS = {"methods": "", "models": "", "seeds": ""}
"""Parameters that cut a suite down, as they are where they do not."""


def _warn_of_part(context: typer.Context) -> None:
    """A suite has one report: one of a part of it takes the place of that of the whole."""
    if cut := [f"--{name} {context.params[name]}" for name in CUTS if context.params[name]]:
        whole = command_line(context, "report", **CUTS)
        warn(f"the report is of a part of the suite ({' '.join(cut)}), in place of the whole; for that: {whole}")


@app.command()
def sweep(
    suite: SuiteOption = "quick",
    data: DataOption = None,
    out: OutOption = DEFAULT_OUT,
    engine: EngineOption = "ray",
    address: AddressOption = None,
    methods: MethodsOption = "",
    models: ModelsOption = "",
    seeds: SeedsOption = "",
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    shares: Annotated[
        str, typer.Option("--shares", help="Of the suite's compute, separated by commas.")
    ] = "0.25,0.5,1,2",
    weights: WeightsOption = None,
    bad_images: BadImagesOption = 0,
) -> None:
    """Run a suite at several shares of its compute, and say whether the order of methods hangs on it."""
    from reports.studies.stability import write

    place: dict[str, Any] = {"engine": engine, "weights": weights and weights.resolve(), "allow_bad_images": bad_images}
    whole = open_session(suite, out, data, methods, models, seeds, overrides, **place)
    if not any(entry.name == "float" for entry in whole.suite.methods):
        raise SuiteError("a sweep measures from the float control at the same compute; add float to the methods")
    sessions = {
        share: open_session(
            suite, out, data, methods, models, seeds, [*overrides, f"compute.epochs={epochs!r}"], **place
        )
        for share, epochs in shares_of(shares, whole.suite.compute.epochs).items()
    }
    check_writable(out)
    for warning in whole.plan.warnings:
        warn(warning)
    amiss, all_lost = False, dict[str, Outcome]()
    for session in sessions.values():
        lost = run_missing(session, engine_named(engine, address, session.suite), None) if session.missing() else {}
        amiss |= say_amiss(session, lost)
        all_lost |= lost
    found = {share: _gathered(session, session.workspace.records) for share, session in sessions.items()}
    console.print(f"stability: {write(found, whole.workspace.report)}", markup=False)
    _stop_at_wrong_use(all_lost)
    if amiss:
        console.print("some trials failed or were lost: run the same command again")
        raise typer.Exit(FAILED)


def _gathered(session: Session, records: Records) -> Comparison:
    """A session's plan beside some records. Raises SuiteError where they cannot stand in one table."""
    from reports.findings.comparison import ComparisonError, gather

    try:
        return gather(session.plan, records)
    except ComparisonError as error:
        raise SuiteError(str(error)) from error


@app.command("list")
def list_everything(as_json: JsonOption = False) -> None:
    """List suites and methods."""
    suites = {name: load_suite(name).description for name in suite_names()}
    methods = {name: _described(name) for name in sorted(known_methods())}
    if as_json:
        print(json.dumps({"suites": suites, "methods": methods}))
        return
    for title, rows in (("suite", suites), ("method", methods)):
        print_columns([(title, "what it is"), *rows.items()])
        print()
    console.print("next: python runner.py plan --suite NAME, then python runner.py --suite NAME")


def _described(method: str) -> str:
    try:
        return (load_method(method).__doc__ or "").partition("\n")[0]
    except BrokenPluginError as error:
        return str(error)


@app.command("plan")
def show_plan(
    context: typer.Context,
    suite: SuiteOption = "quick",
    data: DataOption = None,
    out: OutOption = DEFAULT_OUT,
    methods: MethodsOption = "",
    models: ModelsOption = "",
    seeds: SeedsOption = "",
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    ids: Annotated[bool, typer.Option("--ids", help="Print the ids of missing trials, one a line.")] = False,
    as_json: JsonOption = False,
    measure: Annotated[bool, typer.Option("--measure", help="Time a step of each kind here: hours, disk.")] = False,
    gap: Annotated[float | None, typer.Option("--gap", help="Points: how many seeds show such a difference?")] = None,
    weights: WeightsOption = None,
    bad_images: BadImagesOption = 0,
    storage: StorageOption = None,
) -> None:
    """Show a suite's trials, ceilings in BOPs, and what is done, without running anything."""
    if (measure or gap is not None) and (ids or as_json):
        raise SuiteError("--measure and --gap go with the plan as a table, not with --ids or --json")
    if gap is not None and not gap > 0:
        raise SuiteError(f"--gap {gap:g}: give a difference in points above 0, such as 0.5")
    place: dict[str, Any] = {"weights": weights and weights.resolve(), "allow_bad_images": bad_images}
    session = open_session(suite, out, data, methods, models, seeds, overrides, needs_data=measure, **place)
    _fetch_records(session, storage)
    records = session.workspace.records
    if ids:
        for trial in session.missing():
            print(trial.id)
        return
    rows = [(trial, record.status if (record := records.get(trial.id)) else "to run") for trial in session.plan.trials]
    if as_json:
        print(json.dumps([{"id": t.id, "label": t.label, "status": s, "spec": t.spec.model_dump()} for t, s in rows]))
        return
    cells = [("id", "network", "method", "ceiling", "MBOPs", "seed", "draw", "status")]
    for trial, status in rows:
        spec = trial.spec
        budget = "-" if spec.ceiling_bops is None else f"{spec.ceiling_bops / 1e6:,.2f}"
        cells.append((trial.id, trial.model, trial.row, trial.ceiling, budget, str(spec.seed), str(spec.draw), status))
    print_columns(cells)
    for warning in session.plan.warnings:
        warn(warning)
    epochs = sum(trial.spec.compute.epochs for trial in session.plan.trials)
    cached = sum(session.workspace.start(start.key).exists() for start in session.plan.starts)
    console.print(
        f"{len(rows)} trials of {session.suite.compute.epochs:g} recipe epochs ({epochs:g} in all) from "
        f"{len(session.plan.starts)} float starts, {cached} of them there; {len(session.missing())} to run"
    )
    if measure:
        from benchmarks.commands.measure import show_estimate

        show_estimate(session)
    if gap is not None:
        _show_power(session, gap / 100)
    say_next(context)


def _show_power(session: Session, gap: float) -> None:
    """Seeds that a gap needs, at the spread of the records here, else of those shipped with this repository."""
    from reports.findings.power import advice, spreads
    from reports.verification.reference import REFERENCE

    source, found = "records here", _gathered(session, session.workspace.records)
    if not spreads(found):
        source, found = "shipped records", _gathered(session, Records(REFERENCE / session.suite.suite))
    for line in advice(found, gap, source):
        console.print(line, markup=False)


@app.command()
def report(
    context: typer.Context,
    suite: SuiteOption = "quick",
    data: DataOption = None,
    out: OutOption = DEFAULT_OUT,
    methods: MethodsOption = "",
    models: ModelsOption = "",
    seeds: SeedsOption = "",
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    storage: StorageOption = None,
) -> None:
    """Build a suite's report from its records."""
    session = open_session(suite, out, data, methods, models, seeds, overrides, needs_data=False)
    check_writable(out)
    _fetch_records(session, storage)
    _report(session, always=True)
    _warn_of_none(session)
    _warn_of_part(context)
    _say_where(context, session)


def _fetch_records(session: Session, storage: str | None) -> None:
    if storage is not None:
        Storage.at(storage).fetch((job for job in session.jobs if job.is_trial), session.workspace)


@app.command()
def trial(
    context: typer.Context,
    trial_id: Annotated[str, typer.Argument(metavar="TRIAL", help="An id from `plan --ids`.")],
    suite: SuiteOption = "quick",
    data: DataOption = None,
    out: OutOption = DEFAULT_OUT,
    methods: MethodsOption = "",
    models: ModelsOption = "",
    seeds: SeedsOption = "",
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    weights: WeightsOption = None,
    bad_images: BadImagesOption = 0,
    storage: StorageOption = None,
) -> None:
    """Run one trial in this process: for job arrays without Ray."""
    from benchmarks.commands.progress import View
    from benchmarks.engines.local import LocalEngine

    place: dict[str, Any] = {
        "weights": weights and weights.resolve(),
        "allow_bad_images": bad_images,
        "storage": storage,
    }
    session = open_session(suite, out, data, methods, models, seeds, overrides, **place)
    chosen = session.find(trial_id)
    check_writable(out)
    job = next(job for job in session.jobs if job.key == chosen.id)
    kept = None if storage is None else Storage.at(storage)
    if kept:
        kept.fetch(job.with_starts, session.workspace)
    with View(console, [job], {job.key: 1.0}, session.workspace.records) as view:
        lost = run_jobs(LocalEngine(session.suite.resources), [job], session.workspace, view)
    if kept:
        kept.keep(job.with_starts, session.workspace)
    if lost:
        outcome = lost[job.key]
        errors.print(f"{'error' if outcome.wrong_use else 'lost'}: {job.label}: {outcome.message}", markup=False)
        raise typer.Exit(WRONG_USE if outcome.wrong_use else FAILED)
    console.print(f"record: {session.workspace.records.path(chosen.id)}", markup=False)
    say_next(context, "report")
    record = session.workspace.records.get(chosen.id)
    if record is None or record.status in ("failed", "over_ceiling"):
        raise typer.Exit(FAILED)


@app.command()
def evaluate(
    trial_id: Annotated[str, typer.Argument(metavar="TRIAL", help="A trial's id, or its beginning.")],
    suite: SuiteOption = "quick",
    data: DataOption = None,
    out: OutOption = DEFAULT_OUT,
    methods: MethodsOption = "",
    models: ModelsOption = "",
    seeds: SeedsOption = "",
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    bad_images: BadImagesOption = 0,
) -> None:
    """Score a trial's kept network on the test images again, and set it against its record."""
    session = open_session(suite, out, data, methods, models, seeds, overrides, allow_bad_images=bad_images)
    chosen = session.find(trial_id)
    record = session.workspace.records.get(chosen.id)
    if record is None or record.status != "ok":
        raise SuiteError(f"trial {chosen.id} ({chosen.label}) has no finished network; run the suite first")
    from benchmarks.commands.evaluate import rescore
    from benchmarks.trials.checkpoint import CheckpointError

    try:
        score = rescore(record, session.placed())
    except CheckpointError as error:
        raise SuiteError(str(error)) from error
    recorded = record.result["metrics"]["test_accuracy"]
    console.print(f"{chosen.label}: test accuracy {100 * score.accuracy:.2f} % of {score.images} images")
    console.print(
        f"its record says {100 * recorded:.2f} %: {'the same' if score.accuracy == recorded else 'DIFFERENT'}"
    )
    if score.accuracy != recorded:
        raise typer.Exit(FAILED)


@app.command()
def verify(
    context: typer.Context,
    suite: SuiteOption = "quick",
    data: DataOption = None,
    out: OutOption = DEFAULT_OUT,
    methods: MethodsOption = "",
    models: ModelsOption = "",
    seeds: SeedsOption = "",
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    reference: Annotated[Path | None, typer.Option("--reference", help="Folder of records to hold ours to.")] = None,
) -> None:
    """Set a suite's records against published numbers and against the records shipped with this repository."""
    from reports.verification.claims import FAILED as UNVERIFIED
    from reports.verification.claims import judged, published
    from reports.verification.reference import REFERENCE, checked, lines

    session = open_session(suite, out, data, methods, models, seeds, overrides, needs_data=False)
    place = reference or REFERENCE / session.suite.suite
    if reference and not any(reference.glob("*.json")):
        raise SuiteError(f"no records in {reference}; --reference is a folder of records, such as OUT/SUITE/records")
    verdicts = judged(_gathered(session, session.workspace.records), published())
    checks = checked(session.plan, session.workspace.records, Records(place))
    for line in lines(checks, verdicts):
        console.print(line, markup=False)
    statuses = [*(check.status for check in checks), *(verdict.status for verdict in verdicts)]
    if set(statuses) & set(UNVERIFIED):
        raise typer.Exit(UNVERIFIED_CLAIM)
    if not statuses:
        name = session.suite.suite
        console.print(f"there is no reference for {name} as it is set here; name one: --reference OUT/{name}/records")
    elif "reproduced" not in statuses:
        console.print("there is nothing yet that could be held against anything")
        say_next(context)


@app.command()
def merge(
    context: typer.Context,
    sources: Annotated[list[Path], typer.Argument(help="Output folders, folders of records, or archives of them.")],
    suite: SuiteOption = "quick",
    out: OutOption = DEFAULT_OUT,
    data: DataOption = None,
    methods: MethodsOption = "",
    models: ModelsOption = "",
    seeds: SeedsOption = "",
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
) -> None:
    """Join records that others made of a suite into an output folder, and report."""
    from benchmarks.commands.merge import merge as join
    from benchmarks.records.record import differences

    session = open_session(suite, out, data, methods, models, seeds, overrides, needs_data=False)
    check_writable(out)
    merged = join(sources, session.suite.suite, session.workspace.records, session.trials)
    for conflict in merged.conflicts:
        label = session.trials[conflict.first.id].label
        errors.print(f"two results: {label}: what was there counts, not that of {conflict.source}", markup=False)
        for what, first, second in differences(conflict.first, conflict.second):
            errors.print(f"    {what}: {first} | {second}", markup=False)
    console.print(
        f"{merged.added} records added, {merged.alike} there already, {len(merged.conflicts)} with two results; "
        f"{len(session.missing())} of {len(session.plan.trials)} trials are missing"
    )
    _report(session)
    _warn_of_part(context)
    _say_where(context, session)


@app.command("mlflow-sync")
def mlflow_sync(
    suite: SuiteOption = "quick",
    data: DataOption = None,
    out: OutOption = DEFAULT_OUT,
    methods: MethodsOption = "",
    models: ModelsOption = "",
    seeds: SeedsOption = "",
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    tracking_uri: TrackingOption = None,
) -> None:
    """Rebuild the MLflow view of a suite from its records."""
    session = open_session(suite, out, data, methods, models, seeds, overrides, needs_data=False)
    failures: list[str] = []
    tracker = tracker_for(session, tracking_uri, failures.append)
    synced: list[Record] = []
    for trial in session.plan.trials:
        if record := session.workspace.records.get(trial.id):
            tracker.finished(trial, record)
            synced.append(record)
    tracker.close(sorted(session.workspace.report.glob("*.*")))
    if tracker.unsupported:
        raise SuiteError(failures[0])
    if failures:
        errors.print(f"error: {failures[0]}; the view is not whole: run the same command again", markup=False)
        raise typer.Exit(FAILED)
    _warn_of_none(session)
    console.print(f"{len(synced)} records mirrored to {tracker.uri}", markup=False)
    console.print(f"next: mlflow ui --backend-store-uri {tracker.uri}", markup=False)


@app.command()
def prepare(
    context: typer.Context,
    suite: SuiteOption = "imagenet-full",
    data: DataOption = None,
    archives: Annotated[Path | None, typer.Option("--archives", help="Folder of ImageNet's three archives.")] = None,
    cache: Annotated[int | None, typer.Option("--cache", help="Make copies with this short side, in pixels.")] = None,
    to: Annotated[Path | None, typer.Option("--to", help="Folder for the copies; else DIR/cache-PIXELS.")] = None,
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
) -> None:
    """Get a suite's images ready: unpack, look at each of them, make smaller copies, draw, download."""
    from benchmarks.commands.prepare import Preparation

    ready = Preparation(load_suite(suite, dict(assignment(text) for text in overrides)).data, console)
    folder = ready.run(data, archives, cache, to)
    if ready.amiss:
        raise typer.Exit(FAILED)
    say_next(
        context,
        "doctor",
        data=folder,
        overrides=overrides if cache is None else [*overrides, f"data.short_side={cache}"],
    )


@app.command()
def doctor(
    context: typer.Context,
    suite: SuiteOption = "quick",
    data: DataOption = None,
    out: OutOption = DEFAULT_OUT,
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    weights: WeightsOption = None,
    bad_images: BadImagesOption = 0,
) -> None:
    """Say what will not work here, and how to mend it."""
    from benchmarks.commands.doctor import examine

    chosen = load_suite(suite, dict(assignment(text) for text in overrides))
    well = True
    for finding in examine(chosen, data, out, weights, bad_images):
        console.print(f"{'ok     ' if finding.ok else 'PROBLEM'}  {finding.what}", markup=False)
        well &= finding.ok
    if not well:
        raise typer.Exit(FAILED)
    say_next(context)


@app.command()
def check(
    method: str,
    options: Annotated[list[str], typer.Option("--set", help="key=value, an option of the method.")] = [],  # noqa: B006
    only: Annotated[
        str, typer.Option("--only", help="Only questions with these words, such as `ceiling or gradients`.")
    ] = "",
) -> None:
    """Have a method, registered or a plug-in, sit the exam that all methods sit."""
    from benchmarks.commands.check import BROUGHT, examine

    chosen = dict(assignment(text) for text in options)
    try:
        if chosen or method not in BROUGHT:
            options_of(MethodEntry(name=method, options=chosen))
    except ValueError as error:
        raise SuiteError(str(error)) from None

    def show(mark: str, question: str) -> None:
        console.print(f"{mark:9}  {question}", markup=False)

    answers = examine(method, chosen, show, only=only)
    for question, how in answers.failed:
        console.print(f"\nFAILED: {question}\n{how}", markup=False)
    if answers.failed:
        raise typer.Exit(FAILED)
    if only:
        console.print(f"{method} passes what was asked ({answers.asked} of {answers.questions})", markup=False)
        return
    console.print(f"{method} passes; next: add it to a suite's methods", markup=False)


USER_ERRORS = (SuiteError, DataError, RecordError, EngineError, StorageError, UnknownMethodError, BrokenPluginError)
UsageError: Any = typer.BadParameter.__bases__[0]
"""click's: an unknown option or command, a value that is no number. Newer versions of typer carry click inside."""


def main(arguments: Sequence[str]) -> int:
    """Run the command line; `run` is the command where none is named."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    if not arguments or (arguments[0].startswith("-") and arguments[0] != "--help"):
        arguments = ["run", *arguments]
    try:
        code: int = app(args=list(arguments), standalone_mode=False) or 0
    except typer.Exit as stop:
        code = stop.exit_code
    except USER_ERRORS as error:
        errors.print(f"error: {error}", markup=False)
        return WRONG_USE
    except UsageError as error:
        what = error.format_message().rstrip(".")
        errors.print(f"error: {what}; --help lists commands and options", markup=False)
        return WRONG_USE
    except OSError as error:
        errors.print(f"error: {error}; free space or mend it and run the same command again, it goes on", markup=False)
        return FAILED
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    if code == STOPPED:  # some versions of typer make an exit code of a KeyboardInterrupt
        errors.print("stopped; run the same command again, it goes on where it was")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
