"""The same run under other thresholds, without training.    python -m lab.replay RUN svd_policy.angle_stable=0.1,0.2"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab import command, config, record
from lab.config import trust
from lab.errors import UsageError, nearest
from lab.ledger import Recorded
from lab.record import run_files
from lab.replay.target import MEASURED
from lab.svd_policy import SvdPolicy
from lab.svd_policy.decisions import Decided

PREFIX = "svd_policy."


def main(arguments: list[str] | None = None) -> None:
    """Replay, compare or suggest; a user's mistake ends with one sentence."""
    parser = command.Parser(prog="lab-replay", description=__doc__)
    parser.add_argument("run", type=command.path, metavar="RUN", help="a run directory with a ledger")
    parser.add_argument("overrides", nargs="*", help="svd_policy=NAME, svd_policy.KEY=VALUE or V1,V2,…")
    parser.add_argument("--suggest", action="store_true", help="propose thresholds from what was recorded")
    parser.add_argument(
        "--against",
        type=command.path,
        nargs="+",
        metavar="LIVE",
        help="runs at other limits, or a multirun of them: is each one's first switch what RUN says of it?",
    )
    parser.add_argument("--config-dir", type=command.path, metavar="DIR", help="where your own svd_policy/*.yaml are")
    parser.add_argument("--mark", metavar="LAYER", help="a layer to draw boldly in clauses.png")
    parser.add_argument("--to", type=command.path, metavar="DIR", help="where results go; default RUN/replay")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=command.TRUST)
    given = parser.parse_intermixed_args(arguments)
    try:
        _run(given)
    except UsageError as error:
        sys.exit(str(error))


def _run(given: argparse.Namespace) -> None:
    from lab import ledger
    from lab.replay import clause_figure, tables
    from lab.replay.outcome import sweep
    from lab.replay.suggest import suggest
    from lab.spectral.diagnosis import NotHeld
    from lab.svd_policy import decisions

    if not given.run.is_dir():
        raise UsageError(f"{given.run} is no folder; name a run's, such as multirun/single/<time>.")
    to = given.to or given.run / "replay"
    if given.to is None and any(path.is_symlink() for path in (to, *to.rglob("*"))):
        raise UsageError(f"{to} is, or holds, a link, and what is written there would land elsewhere; give --to DIR.")
    command.check_folder(to, f"--to {to}")
    check_whole(given.run, ledger.NAME)
    check_whole(given.run, decisions.FILE)
    recorded = ledger.read(given.run)
    if not recorded.rows:
        raise UsageError(f"the ledger of {given.run} holds no row; the run ended before its first tick.")
    for note in notes(recorded):
        print(note)
    if given.mark is not None and given.mark not in (layers := {row.layer for row in recorded.rows}):
        raise UsageError(f"--mark {given.mark} is no layer of this ledger{nearest(given.mark, sorted(layers)) or '.'}")
    trust.allow_each(given.trust)
    _check_header(given.run, recorded)
    policy, swept = _policy_and_sweep(recorded, given.overrides, given.config_dir)
    try:
        if given.against:
            _compare(recorded, given.against, to)
            return
        if given.suggest:
            tables.show_suggestions(suggest(recorded.rows, policy))
        elif not given.overrides:
            made = decisions.decide_all(recorded.rows, policy)
            print(compare(made, decisions.read(given.run)))
            tables.show_summary(made, policy)
        else:
            outcomes = sweep(recorded.rows, policy, swept)
            tables.show_outcomes(outcomes, swept)
            if not swept:
                made = decisions.decide_while_held(recorded.rows, policy)
                tables.show_summary(made, policy)
            print(f"wrote {tables.write(outcomes, swept, to)}")
            if not swept and (drawn := clause_figure.write(made, to / "clauses.png", given.mark)):
                print(f"wrote {drawn}")
    except NotHeld as error:
        raise UsageError(f"the ledger of {given.run} cannot answer this: {error}") from None


def _compare(recorded: Recorded, folders: Sequence[Path], to: Path) -> None:
    from lab import ledger
    from lab.replay import against

    rows = []
    for folder in against.runs_in(folders):
        live = ledger.read(folder)
        _check_header(folder, live)
        settings = live.header["policy"]
        rows.append(against.compare(recorded, folder, settings, make_policy(settings)))
        print(against.sentence(rows[-1]))
    print(f"wrote {against.write(rows, to)}")


def _check_header(run_dir: Path, recorded: Recorded) -> None:
    """Refuse a ledger whose policy is a stranger's to choose; raises UsageError."""
    import_from_here()
    policy, path = recorded.header.get("policy"), run_dir / config.CONFIG
    if not isinstance(policy, dict):
        raise UsageError(f"the ledger of {run_dir} names no policy in its header; restore the file.")
    if not path.is_file() or trust.start_folder(run_dir, path.read_text(errors="replace", encoding="utf-8")) is None:
        trust.check_policy(policy, run_dir, f"the ledger of {run_dir}")


def import_from_here() -> None:
    """A class of the user's own, behind everything that is installed."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def check_whole(run_dir: Path, name: str) -> None:
    """Raises UsageError where a file is not what a closed run left: rows that are gone would not be missed."""
    if not (run_dir / record.RESULT).is_file():
        return
    result = record.read(run_dir)
    if result.status == "completed" and name in result.files:
        damage = run_files.damage(run_dir / name, result.files[name], whole=True)
        if damage is not None:
            raise UsageError(f"{damage}; put a copy of it back: what follows from it would be another run's.")


def notes(recorded: Recorded) -> list[str]:
    """A sentence each on where the replay stops being exact, and on what is missing."""
    sentences = []
    if recorded.cut:
        sentences.append(f"The ledger was cut short; replaying the {len(recorded.rows)} whole rows before the cut.")
    per_step: dict[int, int] = {}
    for row in recorded.rows:
        per_step[row.step] = per_step.get(row.step, 0) + 1
    last = max(per_step, default=0)
    if per_step and per_step[last] < max(per_step.values()) and recorded.cut:
        sentences.append(f"Of step {last} only {per_step[last]} layers were written.")
    first: dict[str, str] = {}
    switched = next((row for row in recorded.rows if row.mode != first.setdefault(row.layer, row.mode)), None)
    if switched is not None:
        sentences.append(
            f"Exact up to step {switched.step}, where {switched.layer} was {switched.mode}: "
            "after a first switch other thresholds would have trained another model."
        )
    return sentences


def _policy_and_sweep(
    recorded: Recorded, overrides: Sequence[str], config_dir: Path | None
) -> tuple[SvdPolicy, dict[str, list[Any]]]:
    """The policy that the overrides name, with their single values in it, and the values to sweep."""
    settings = dict(recorded.header["policy"])
    pairs = [override.partition("=") for override in overrides]
    for key, equals, value in pairs:
        if not equals or not (key == "svd_policy" or key.startswith(PREFIX)):
            raise UsageError(f"{key + equals + value!r} is no override of svd_policy; write svd_policy.KEY=VALUE.")
        if key == "svd_policy":
            named = _load(value, config_dir)
            settings = {**named, **{name: settings[name] for name in MEASURED if name in named and name in settings}}
    swept: dict[str, list[Any]] = {}
    for key, _, value in pairs:
        if key != "svd_policy":
            name, values = _values(key, value, settings)
            settings[name] = values[0]
            if len(values) > 1:
                swept[name] = values
    return make_policy(settings), swept


def _values(key: str, text: str, settings: Mapping[str, Any]) -> tuple[str, list[Any]]:
    import yaml

    name = key.removeprefix(PREFIX)
    known = [item for item in settings if item != "_target_"]
    if name not in known:
        raise UsageError(f"{key} is no setting of this policy{nearest(name, known)} (it has {', '.join(known)}).")
    if name in MEASURED:
        raise UsageError(
            f"{key} says how the run was measured (here {settings[name]!r}); only a new run can change it."
        )
    try:
        values = [yaml.safe_load(part) for part in text.split(",")]
    except yaml.YAMLError as error:
        raise UsageError(f"{key}={text} cannot be read ({' '.join(str(error).split())}).") from None
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(settings[name], int | float) and not number:
            raise UsageError(f"{key}={value!r} is no number, and {name} is one (here {settings[name]!r}).")
        if number and not math.isfinite(value):
            raise UsageError(f"{key}={value} is not finite; give a number (here {settings[name]!r}).")
    return name, values


def _load(name: str, config_dir: Path | None) -> dict[str, Any]:
    import yaml

    from lab.config import CONF

    if config_dir is not None and not config_dir.is_dir():
        raise UsageError(f"--config-dir {config_dir} is no folder; name the one that holds your svd_policy/*.yaml.")
    folders = [folder / "svd_policy" for folder in ([config_dir] if config_dir else []) + [CONF]]
    for folder in folders:
        path = folder / f"{name}.yaml"
        if path.is_file():
            try:
                loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
            except yaml.YAMLError as error:
                raise UsageError(f"{path} is no YAML ({' '.join(str(error).split())}).") from None
            if not isinstance(loaded, dict) or "_target_" not in loaded:
                raise UsageError(f"{path} names no policy; give it a _target_ and the policy's settings.")
            return loaded
    known = sorted(path.stem for folder in folders for path in folder.glob("*.yaml"))
    raise UsageError(f"svd_policy={name} is no policy{nearest(name, known)} (there are {', '.join(known)}).")


def make_policy(settings: Mapping[str, Any]) -> SvdPolicy:
    """The policy of plain settings with a `_target_`; the invoking directory is importable."""
    from lab.config import instantiate

    import_from_here()
    made: SvdPolicy = instantiate.make(dict(settings))
    return made


def compare(made: Sequence[Decided], live: Sequence[Decided]) -> str:
    """A sentence on whether the replay reproduces decisions.jsonl, exactly or up to where."""
    for position, (one, other) in enumerate(zip(made, json.loads(json.dumps(live)), strict=False)):
        if one != other:
            return f"differs from decisions.jsonl at row {position + 1}: step {one['step']}, {one['layer']}."
    if len(made) != len(live):
        return (
            f"the first {min(len(made), len(live))} decisions agree; the ledger has {len(made)}, the run {len(live)}."
        )
    return f"reproduces all {len(made)} decisions of decisions.jsonl exactly."


if __name__ == "__main__":
    main()
