"""Command lines and settings files, read and checked by jsonargparse."""

from __future__ import annotations

import dataclasses
import re
import typing
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from da2s_fast.errors import UserError


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of descriptions and examples."""


def parse(command: ModuleType, name: str, argv: Sequence[str]) -> Namespace | None:
    """The arguments of a command, those that were given; None when it was asked for help.

    A command with a dataclass `SETTINGS` gets a flag for each of its fields and `--config`; what
    the file and the flags set (flags win) is then in `settings`, a dict.

    Raises:
        UserError: an argument or a setting that is unknown, missing or of the wrong type.
    """
    parser = _new_parser(f"da2s {name}", command.__doc__)
    command.add_arguments(parser)
    settings = getattr(command, "SETTINGS", None)
    if settings:
        parser.usage = command.USAGE
        parser.add_argument("--config", metavar="FILE", help="YAML file with settings; flags win.")
        parser.add_class_arguments(settings)
    if any(word in ("-h", "--help") for word in argv):
        parser.print_help()
        return None
    words = _tidy(argv, _list_settings(settings) if settings else set())
    arguments = _checked(parser, lambda: parser.parse_args(words, defaults=False))
    if settings:
        names = {field.name for field in dataclasses.fields(settings)}
        given = {key: arguments.pop(key) for key in names & set(arguments.keys())}
        file = read_settings(Path(arguments.config), settings) if "config" in arguments else {}
        arguments.settings = file | _without_none(given)
    return arguments


def read_settings(path: Path, settings: type) -> dict[str, Any]:
    """The settings in a YAML file, checked against the fields of the dataclass `settings`.

    The config.yaml of a run is such a file. null stands for a setting that is not given.

    Raises:
        UserError: the file cannot be read, or a setting is unknown or of the wrong type.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the settings file {path}: {error.strerror}") from None
    # Besides YAMLError: text that is not UTF-8, dates that do not exist, endless nesting.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a YAML file{_place(error)}; mend it") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {values!r:.60}; it must hold lines such as 'epochs: 50'")
    keep = values.pop("keep", None)
    if isinstance(keep, Mapping):  # as runs keep it
        values |= {f"keep_{kind}": counts for kind, counts in keep.items()}
    elif keep is not None:
        raise UserError(f"{path}: keep={keep!r:.60} must give a list per kind of cell")
    parser = _new_parser(str(path))
    parser.add_class_arguments(settings)
    checked = _checked(parser, lambda: parser.parse_object(values, defaults=False), f"{path}: ")
    return _without_none(checked.as_dict())


def _new_parser(prog: str, description: str | None = None) -> ArgumentParser:
    return ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )


def _tidy(argv: Sequence[str], lists: set[str]) -> list[str]:
    """Let flags be written with "-" for "_", and lists without brackets: --keep-normal 1,2,3,3."""
    words: list[str] = []
    expects_list = False
    for word in argv:
        flag = re.match(r"--(\w[\w-]*)(=?)", word)
        if flag:
            name = flag[1].replace("-", "_")
            value = word[flag.end() :]
            in_word = _bracketed(value) if flag[2] and name in lists else value
            words.append(f"--{name}{flag[2]}{in_word}")
            expects_list = name in lists and not flag[2]
        else:
            words.append(_bracketed(word) if expects_list else word)
            expects_list = False
    return words


def _bracketed(value: str) -> str:
    return value if value.startswith("[") or value in ("", "null") else f"[{value}]"


def _list_settings(settings: type) -> set[str]:
    hints = typing.get_type_hints(settings)
    kinds = {name: (hint, *typing.get_args(hint)) for name, hint in hints.items()}
    return {n for n, found in kinds.items() if any(typing.get_origin(k) is list for k in found)}


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _checked(parser: ArgumentParser, read: Callable[[], Namespace], where: str = "") -> Namespace:
    """What `read` returns; its errors, which take many lines, become one sentence."""
    try:
        return read()
    except ArgumentError as error:
        names = [name for action in parser._actions for name in action.option_strings]
        raise UserError(where + _sentence(str(error), names)) from None


def _sentence(message: str, names: Sequence[str]) -> str:
    unknown = re.search(r"unrecognized arguments: ([^\s=]*)|Option '(.*)' is not accepted", message)
    if unknown:
        name = unknown[1] or unknown[2] or ""
        setting = unknown[1] is None
        near = get_close_matches(f"--{name}" if setting else name, names, 1)
        hint = "--help lists all there are"
        if near and (setting or name.startswith("-")):
            hint = f"did you mean {near[0][2 * setting :]}?"
        elif not setting and not name.startswith("-") and "--data" in names:
            hint = f"did you mean --data {name}?"
        return f"there is no {'setting' if setting else 'argument'} {name!r}; {hint}"
    wrong = re.match(r'Parser key "(.+?)":', message)
    value = re.search(r".*(?:Given|Got) value: (.*)", message, re.DOTALL)
    kind = re.search(r"Subtypes: \[(.*)\]\n|Expected a (.*?)\. Got", message)
    if wrong and value and kind:
        return f"{wrong[1]}={value[1]} must be {_kind_in_words(kind[1] or kind[2])}"
    return message


def _kind_in_words(kind: str) -> str:
    kind = re.sub(r"<class '(\w+)'>", r"\1", kind)
    kind = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", kind.replace(", NoneType", ""))
    for name, words in (
        ("list[int]", "a list of whole numbers such as [1, 2]"),
        ("list[str]", "a list of names such as [max_pool_3x3, skip_connect]"),
    ):
        kind = kind.replace(name, words)
    plain = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
    return plain.get(kind, kind)


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    return f" at line {mark.line + 1} ({problem})" if mark and problem else ""
