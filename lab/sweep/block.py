"""Block of a study: what its YAML may declare, at one of its sizes, in the types that a study has."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, NoReturn

from lab.errors import UsageError, nearest
from lab.record.study import Study

SIZES = ("quick", "default", "full")
_NEEDED = ("name", "question", "arms", "baseline", "margin", "seeds", "learning_rates")
_OWN = {"schema", "size", "twin_seeds", "jobs", "margin_value", "procedure", "rungs"}  # of study.json alone
_KNOWN = sorted(({item.name for item in fields(Study)} | {"sizes", "aa"}) - _OWN)
_MAY_BE_NULL = ("described_seeds", "seconds_per_job", "bytes_per_job", "higher_is_better")


def read(block: Mapping[str, Any], size: str) -> dict[str, Any]:
    """The block's values at a size: lists where a text or a rate stands for one, `arms` and `learning_rates` by arm.

    Raises UsageError for a key that is none or is missing, for a value of another form, and for a name that is no arm.
    """
    if not isinstance(block, Mapping):
        _refuse("hydra.sweeper.study", block, "a mapping of a study's keys, as in conf/experiment/rank_sweep.yaml")
    plain = {key: value for key, value in block.items() if key != "sizes"}
    sizes = block.get("sizes") or {}
    if not isinstance(sizes, Mapping) or not all(isinstance(own or {}, Mapping) for own in sizes.values()):
        _refuse("sizes", sizes, "a mapping such as {quick: {seeds: [1, 2]}}")
    if size not in SIZES or set(sizes) - set(SIZES):
        raise UsageError(f"study_size={size} with sizes {', '.join(map(str, sizes))}; sizes are {', '.join(SIZES)}.")
    for keys in (plain, *(own or {} for own in sizes.values())):
        _check_keys(keys)
    for key in _NEEDED:
        if key not in plain:
            raise UsageError(f"the study declares no {key!r}; add it to the experiment's study block.")
    arms = _arms("arms", plain["arms"])
    for key, value in (sizes.get(size) or {}).items():
        keeps = key == "arms" and not isinstance(value, Mapping)
        plain[key] = _some_of(f"sizes.{size}.arms", value, arms) if keeps else value
    given = {key: value for key, value in plain.items() if not (value is None and key in _MAY_BE_NULL)}
    typed: dict[str, Any] = {key: _FORMS[key](key, value) for key, value in given.items()}
    typed["learning_rates"] = _by_arm(typed["learning_rates"], typed["arms"], arms)
    return typed


def check_known(what: str, names: Iterable[str], arms: Iterable[str]) -> None:
    """Raise UsageError for the first name that is no arm, neither of the YAML nor of the command line."""
    known = list(arms)
    for name in names:
        if name not in known:
            raise UsageError(f"{what}: {name!r} is no arm{nearest(name, known)}; arms: {', '.join(known)}.")


def _check_keys(keys: Iterable[Any]) -> None:
    for key in keys:
        if key == "rungs":
            raise UsageError(
                "rungs halve within a schedule, where the losses of one half are not those of the other's schedule; "
                "give two tune_seeds, the second of which only the last rates of an arm are run on."
            )
        if key not in _KNOWN:
            raise UsageError(f"a study declares no {key!r}{nearest(str(key), _KNOWN)}; known are {', '.join(_KNOWN)}.")


def _refuse(key: str, value: Any, form: str) -> NoReturn:
    raise UsageError(f"{key}={value!r} of the study is not {form}.")


def _text(key: str, value: Any) -> str:
    return value if isinstance(value, str) and value else _refuse(key, value, "text; write it in quotes")


def _texts(key: str, value: Any) -> list[str]:
    """A list of texts; a text is a list of itself."""
    own = [value] if isinstance(value, str) else value
    if not isinstance(own, list) or not all(isinstance(each, str) for each in own):
        _refuse(key, value, "a list of texts, such as [a, b]")
    return list(own)


def _arms(key: str, value: Any) -> dict[str, list[str]]:
    """Arm -> its overrides, of which there may be none."""
    if not isinstance(value, Mapping) or not value:
        _refuse(key, value, "a mapping of arms, such as {r8: rank=8, full: [method=full, optim=muon]}")
    for name in value:
        _text("the name of an arm", name)
    return {name: _texts(f"arms.{name}", own) for name, own in value.items()}


def _some_of(key: str, value: Any, arms: Mapping[str, list[str]]) -> dict[str, list[str]]:
    names = _texts(key, value)
    check_known(key, names, arms)
    return {name: arms[name] for name in names}


def _seeds(key: str, value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(each) is int for each in value):
        _refuse(key, value, "a list of whole numbers, such as [1, 2, 3, 4]")
    return list(value)


def _grid(key: str, value: Any) -> list[float]:
    """A list of rates; a rate is a list of itself."""
    own = value if isinstance(value, list) else [value]
    if not all(type(each) in (int, float) for each in own):
        _refuse(key, value, "a list of rates, such as [1.0e-4, 3.0e-4, 1.0e-3], nor a mapping of arms to such lists")
    return [float(each) for each in own]


def _rates(key: str, value: Any) -> list[float] | dict[str, list[float]]:
    if not isinstance(value, Mapping):
        return _grid(key, value)
    return {_text("the name of an arm", name): _grid(f"{key}.{name}", own) for name, own in value.items()}


def _by_arm(rates: Any, arms: Iterable[str], others: Iterable[str]) -> dict[str, list[float]]:
    """Arm -> its rates, of a list for all or one for each; `others` are arms of the block that the size leaves out."""
    if not isinstance(rates, Mapping):
        return {name: list(rates) for name in arms}
    check_known("learning_rates", rates, dict.fromkeys([*arms, *others]))
    for name in arms:
        if name not in rates:
            raise UsageError(f"learning_rates has none of the arm {name!r}; give it some.")
    return {name: list(rates[name]) for name in arms}


def _whole(key: str, value: Any) -> int:
    return value if type(value) is int else _refuse(key, value, "a whole number")


def _positive(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        _refuse(key, value, "a number above 0")
    return float(value)


def _flag(key: str, value: Any) -> bool:
    return value if isinstance(value, bool) else _refuse(key, value, "true or false")


def _margin(key: str, value: Any) -> float | str:
    if type(value) not in (int, float, str):
        _refuse(key, value, "a number, '1%' or '5% of gain'")
    return value


_FORMS: Mapping[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("name", "question", "baseline", "metric", "selection_metric", "rate"), _text),
    **dict.fromkeys(("contrasts", "aims", "common"), _texts),
    **dict.fromkeys(("seeds", "tune_seeds"), _seeds),
    **dict.fromkeys(("horizon", "budget", "described_seeds", "max_jobs"), _whole),
    **dict.fromkeys(("seconds_per_job", "bytes_per_job"), _positive),
    **dict.fromkeys(("higher_is_better", "refine", "give_up", "aa"), _flag),
    **{"arms": _arms, "learning_rates": _rates, "margin": _margin},
}
