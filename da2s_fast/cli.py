"""The command `da2s`: finds the command's module and turns errors into one line and an exit code.

Each command is a module of `da2s_fast.commands` with `add_arguments(parser)` and `run(arguments)`;
its docstring is the command's help. jsonargparse's own subcommands would need the parsers of all
commands, and with them everything that any command imports, to run a single one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from da2s_fast import __version__
from da2s_fast.errors import DivergedError, UserError

COMMANDS = {
    "search": "search an architecture for a data set",
    "retrain": "train a found architecture from scratch",
    "evaluate": "measure a trained model on test images",
    "predict": "classify image files with a trained model",
    "export": "write a trained model for other programs (PyTorch, torch.export, ONNX)",
    "compare": "set several searches side by side",
    "report": "write the report page of a search anew",
    "info": "show which backends can run here, and why the others cannot",
}

HELP = """\
usage: da2s [--help] [--version] COMMAND ...

Searches image classifiers by discretization-aware architecture search.

commands:
{commands}

Examples:
  da2s search                             search on scikit-learn's digits, a few minutes
  da2s search --data photos/ --epochs 50  one folder of images per class
  da2s retrain runs/digits-da2s-seed0-1   train what the search has found

da2s COMMAND --help explains a command and all its settings.
"""

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0: done. 1: the training diverged, or nobody reads the output. 2: something given cannot be
    used, or the machine cannot do it (full disk, too little memory). 130: interrupted.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    _wait_without_spinning()
    try:
        _run(argv)
        # What is left in the buffer may meet a full disk, too.
        sys.stdout.flush()
        return 0
    except UserError as error:
        return _fail(str(error), WRONG_INPUT)
    except DivergedError as error:
        return _fail(str(error), FAILED)
    except KeyboardInterrupt as error:
        return _fail(str(error), INTERRUPTED, kind="interrupted")
    except BrokenPipeError:
        # The reader has gone; the interpreter must not try to flush again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}", WRONG_INPUT)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return _fail(
            "out of memory: lower batch_size, channels or cells, or mix fewer channels with "
            "partial_channels",
            WRONG_INPUT,
        )


def _run(argv: list[str]) -> None:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        listed = "\n".join(f"  {command:<10}{text}" for command, text in COMMANDS.items())
        print(HELP.format(commands=listed), end="")
    elif name == "--version":
        print(f"da2s_fast {__version__}")
    elif name not in COMMANDS:
        raise UserError(f"there is no command {name!r}; choose from {', '.join(COMMANDS)}")
    else:
        from da2s_fast.commands.arguments import parse  # noqa: PLC0415

        command = import_module(f"da2s_fast.commands.{name}")
        arguments = parse(command, name, argv[1:])
        if arguments is not None:
            command.run(arguments)


def _wait_without_spinning() -> None:
    """Tell OpenMP, before torch loads it, to let waiting threads sleep soon.

    By default they spin for milliseconds. On a machine whose cores have other work to do, that
    makes the many short operations of a search several times slower. 1000 rounds is what libgomp
    itself takes once it knows of more threads than cores.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _fail(message: str, code: int, kind: str = "error") -> int:
    line = " ".join(message.split())
    print(f"da2s: {kind}: {line}" if line else f"da2s: {kind}", file=sys.stderr)
    return code


def _out_of_memory(error: Exception) -> bool:
    # torch names the exhaustion of a GPU with a class, that of the CPU only with a text.
    texts = ("out of memory", "can't allocate memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)
