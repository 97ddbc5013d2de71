"""The ``vlar1`` command: finds its subcommands among the installed entry points and imports only the one asked for."""

from __future__ import annotations

import argparse
import errno
import os
import select
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, version

from drivers.errors import UserError

GROUP = "vlar1.commands"
OUR_PACKAGES = ("edge", "drivers", "calib", "export", "training")

# One line for each command of ours, kept here so that the help need not import it (and, with it, torch).
DESCRIPTIONS = {
    "demo": "pick and place in simulation, through the real path, with a report",
    "run": "carry out orders on an arm, from the command line or the operator's page",
    "ask": "one decision on one image file",
    "doctor": "what this machine has and lacks for each feature, and what to type",
    "profile": "where a bundle's decisions spend their time, and how far from the floor that is",
    "serve": "answer over HTTP, as the released VLA-R1 server and OpenAI's API do",
    "replay": "show a recorded run, or decide on its frames again",
    "camera": "list the cameras, look through one, record one",
    "arm": "find, set up, calibrate, watch, park and move an arm",
    "export": "turn a trained checkpoint into a verified bundle",
    "data": "make, convert and reason about training data",
    "train": "train a checkpoint: supervised, then GRPO; resumes where it stopped",
    "eval": "measure a bundle or a checkpoint on held-out images",
    "deploy": "copy a bundle and a robot file to a board over ssh, build, check and measure there",
    "build": "compile a bundle's graphs to TensorRT engines, on the board or ahead of time",
    "calibrate": "measure what the robot relies on: the camera, where it is, confidence",
}

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PIPE_CLOSED = 141  # 128 + SIGPIPE


def commands() -> dict[str, EntryPoint]:
    """The installed subcommands by name, in the order the help lists them."""
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    rank = {name: i for i, name in enumerate(DESCRIPTIONS)}
    return dict(sorted(found.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser with every command named in its help, and only the ``chosen`` one imported."""
    parser = argparse.ArgumentParser(prog="vlar1", description="VLA-R1 on a robot.")
    parser.add_argument("--version", action="version", version=f"vlar1 {version('vlar1-edge')}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, entry in commands().items():
        if name == chosen:
            entry.load()(subparsers)
        else:
            subparsers.add_parser(name, help=DESCRIPTIONS.get(name, f"from {entry.module}"), add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    2 after one line on stderr where the user can mend it (UserError, a file that the system refuses to read or write, a
    missing optional package, wrong arguments by argparse's SystemExit); 130 after Ctrl-C, once the command's own
    cleanup is through; 141 when the reader of stdout has gone. Anything else is a bug of ours and keeps its traceback.
    """
    # Nothing of ours draws with OpenGL. Unless told so, MuJoCo, as it is imported, looks for GLFW in processes of its
    # own, and those print tracebacks when Ctrl-C comes then.
    os.environ.setdefault("MUJOCO_GL", "disable")
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = argparse.Namespace(func=None)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    try:
        args = build_parser(chosen).parse_args(arguments)
        code = int(args.func(args))
        sys.stdout.flush()
        return code
    except UserError as error:
        return _complain(str(error))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing in OUR_PACKAGES:
            raise
        return _complain(_missing_package(chosen, args.func, missing))
    except KeyboardInterrupt:
        print("vlar1: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        if not _stdout_reader_gone():  # another pipe broke: that is a failure of ours, not the end of `| head`
            raise
        # The interpreter flushes stdout once more on its way out; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:  # about no file the user named
            raise
        return _complain(": ".join(str(part) for part in (error.filename, error.strerror) if part is not None))


def _complain(message: str) -> int:
    print("vlar1: error: " + " ".join(message.split("\n")), file=sys.stderr)
    return USER_ERROR


def _missing_package(command: str | None, func: object, missing: str) -> str:
    """Which extra brings what ``command`` lacks: the extras are named after the rooms that need them."""
    entry = commands().get(command or "")
    # A group such as calibrate has its commands in rooms of their own.
    modules = (getattr(func, "__module__", ""), entry.module if entry else "")
    room = next((r for r in (module.partition(".")[0] for module in modules) if r in ("export", "training")), "")
    # torch by its exact version and first: asked for loosely, it brings gigabytes of GPU libraries.
    extra = f"pip install torch==2.13.0 && pip install 'vlar1-edge[{room}]'"
    how = extra if room else "pip install 'vlar1-edge'"
    return f"`vlar1 {command}` needs the package {missing}, which is not installed: {how}"


def _stdout_reader_gone() -> bool:
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # stdout is closed, or is not a file at all
        return False


if __name__ == "__main__":
    sys.exit(main())
