"""What the pages tell a reader to type: it runs as it stands, or another test runs it, or the page says why not.

A fenced block is commands (no language, or sh), Python, or neither (text, yaml, json, mermaid). Commands and Python run
page by page, in order, in a folder that looks like a clone, unless an HTML comment on the line above says otherwise:

    <!-- not run: REASON -->         why not
    <!-- run by: FILE ... -->        these run them: every subcommand and option of the block stands in one of them
    <!-- file: NAME -->              the block is that file, in the folder; what comes later may run it
    <!-- answers at: URL -->         goes on until the page ends: a server, which answers there
    <!-- nothing here is run: REASON -->  anywhere in a page, for all of it
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
import yaml

from drivers.arm.tables import COUNTS_PER_TURN, RAD_PER_COUNT
from drivers.robot import SO101_PATH, load_robot
from drivers.sim.following_arm import FollowingBank
from drivers.sim.servo_bus import ServoBus
from edge.cli import build_parser, commands
from edge.profile.show import table_picture

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md"] + [
    path.relative_to(ROOT).as_posix()
    for room in ("docs", "deploy", "models")
    for path in sorted((ROOT / room).rglob("*.md"))
]
COMMANDS, PYTHON, OTHER = ("", "sh"), "python", ("text", "yaml", "mermaid", "json")
KINDS = ("not run", "run by", "file", "answers at", "nothing here is run")
TYPED = ("vlar1", ".venv/bin/vlar1", "python", "curl", "cp")
"""Programs that blocks may run. What installs, needs root or another machine is not run, and says so."""
MOVES = ("docs/control.md", "docs/run.md")
"""Pages that drive an emulated arm in real time."""
PATIENCE_S = 120.0
HALF_TURN = COUNTS_PER_TURN // 2
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!-- (.*?): (.*?) -->")
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block: ``kind`` and ``said`` are those of the comment above it, "" for none."""

    page: str
    line: int
    language: str
    text: str
    kind: str = ""
    said: str = ""

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.language not in OTHER and self.kind not in ("not run", "run by", "file")

    @property
    def lines(self) -> list[str]:
        """Its commands, continued lines joined, without comments."""
        joined = re.sub(r"\\\n\s*", " ", self.text)
        return [line for line in (re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines()) if line]


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def blocks(page: str) -> tuple[Block, ...]:
    text, found = text_of(page), []
    whole = next((said for kind, said in _COMMENT.findall(text) if kind == "nothing here is run"), None)
    for match in _FENCE.finditer(text):
        above = text[: match.start()].rstrip("\n").rpartition("\n")[2]
        comment = _COMMENT.fullmatch(above)
        kind, said = comment.groups() if comment else ("", "") if whole is None else ("not run", whole)
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match[1], match[2], kind, said))
    return tuple(found)


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", text_of(page))


ALL = [block for page in PAGES for block in blocks(page)]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page: str) -> None:
    """A comment that is misspelt, or stands where no block follows, would run or skip in silence."""
    text = text_of(page)
    assert text.count("```") == 2 * len(blocks(page)), "a fence that is not closed, or indented"
    for block in blocks(page):
        assert block.language in (*COMMANDS, PYTHON, *OTHER) or block.kind == "file", block.where
        for line in block.lines if block.runs and block.language in COMMANDS else ():
            harmless = line.split()[0] in TYPED and not {"pip", "sudo"} & set(line.split())
            assert harmless, f"{block.where}: {line}: is not run here; say why not in a comment above the block"
    heeded = [(block.kind, block.said) for block in blocks(page)]
    for kind, said in _COMMENT.findall(text):
        assert kind in KINDS and said.strip(), f"{page}: {kind}: {said}"
        assert kind == "nothing here is run" or (kind, said) in heeded, f"{page}: no block follows {kind}: {said}"
    assert text.count("<!--") == len(_COMMENT.findall(text)), page


# As typed


@contextmanager
def arm(folder: Path) -> Iterator[dict[str, str]]:
    """An emulated SO-101 at $PORT, standing ready, and what LeRobot keeps of its calibration."""
    robot = load_robot()
    ends = np.rint(HALF_TURN + np.stack([robot.lower_rad, robot.upper_rad], axis=1) / RAD_PER_COUNT).astype(int)
    motors = {
        joint.name: {"id": joint.id, "drive_mode": 0, "homing_offset": 0, "range_min": low, "range_max": high}
        for joint, (low, high) in zip(robot.arm.joints, ends.tolist(), strict=True)
    }
    (folder / "arm.json").write_text(json.dumps(motors))
    with ServoBus(FollowingBank(robot, robot.ready_rad)) as bus:
        yield {"PORT": bus.port}


@contextmanager
def robot_file(folder: Path) -> Iterator[dict[str, str]]:
    """``my-arm.yaml``: an emulated SO-101, standing ready."""
    with arm(folder) as given:
        fields = yaml.safe_load(SO101_PATH.read_text())
        fields["model"] = str(load_robot().model)
        fields["arm"]["port"] = given["PORT"]
        (folder / "my-arm.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
        yield {}


@contextmanager
def pictures(folder: Path) -> Iterator[dict[str, str]]:
    """Two frames, as they come from a camera: in ``frames``, at $CAMERA, and where the demo leaves its own."""
    rgb, _ = table_picture()
    for place in ("frames", "runs/demo/frames"):
        (folder / place).mkdir(parents=True)
        for name in ("01.png", "02.png"):
            cv2.imwrite(str(folder / place / name), rgb[:, :, ::-1])
    yield {"CAMERA": "frames"}


@contextmanager
def clone(folder: Path) -> Iterator[dict[str, str]]:
    """The folder looks like a clone with its environment; what is written beside stays in it."""
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv", "runs", "build") and not path.name.endswith("_cache"):
            (folder / path.name).symlink_to(path)
    (folder / ".venv").symlink_to(sys.prefix)
    yield {"PATH": f"{folder}/.venv/bin:{os.environ['PATH']}", "HOME": str(folder), "COLUMNS": "120"}


NEEDS: dict[str, tuple[Callable[[Path], object], ...]] = {
    "README.md": (pictures,),
    "docs/control.md": (robot_file,),
    "docs/export.md": (pictures,),
    "docs/run.md": (arm, pictures),
    "docs/serving.md": (pictures,),
}
"""What a page's commands find in the folder, or in variables that the page tells its reader to set."""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.alone] if page in MOVES else [])
        for page in PAGES
        if any(block.runs for block in blocks(page))
    ],
)
def test_a_page_works_as_typed(page: str, tmp_path: Path) -> None:
    test_every_block_says_what_it_is(page)  # before anything runs
    with ExitStack() as stack:
        given = dict(os.environ)
        for need in (clone, *NEEDS.get(page, ())):
            given |= stack.enter_context(need(tmp_path))  # type: ignore[arg-type]
        for block in blocks(page):
            if block.kind == "file":
                (tmp_path / block.said).write_text(block.text)
            elif block.kind == "answers at":
                stack.enter_context(served(block, tmp_path, given))
            elif block.runs:
                run(block, tmp_path, given)


def shell(block: Block) -> list[str]:
    if block.language == PYTHON:
        return [sys.executable, "-c", block.text]
    return ["bash", "-euo", "pipefail", "-c", block.text]


def run(block: Block, folder: Path, given: Mapping[str, str]) -> None:
    done = subprocess.run(
        shell(block),
        cwd=folder,
        env=given,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, f"{block.where} ended with {done.returncode}:\n{block.text}\n{done.stdout}"


@contextmanager
def served(block: Block, folder: Path, given: Mapping[str, str]) -> Iterator[None]:
    """The block goes on until the page is through; Ctrl-C then ends it, with exit code 0."""
    url, (line,) = block.said, block.lines
    with socket.socket() as probe:
        if probe.connect_ex((urlsplit(url).hostname, urlsplit(url).port)) == 0:
            pytest.skip(f"{block.where}: something else answers at {url}")
    with open(folder / "served.log", "w+") as log:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {line}"], cwd=folder, env=given, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            deadline_s = time.monotonic() + PATIENCE_S
            while not answers(url):
                log.seek(0)
                assert process.poll() is None and time.monotonic() < deadline_s, f"{block.where}: {log.read()}"
                time.sleep(0.05)
            yield
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0, block.where
        finally:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


@pytest.mark.parametrize("block", [b for b in ALL if b.kind == "run by"], ids=lambda block: block.where)
def test_what_another_test_runs_stands_in_it(block: Block) -> None:
    told = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in block.said.split())
    for line in block.lines:
        words = shlex.split(line)
        wanted = subcommands(words) if "vlar1" in words[0] else [word.rpartition(".")[2] for word in words[1:3]]
        for word in [*wanted, *(word for word in words if word.startswith("--"))]:
            assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", told), (
                f"{block.where}: {block.said} has no {word}"
            )


# The parser knows it


@cache
def leaves() -> dict[tuple[str, ...], argparse.ArgumentParser]:
    """Every command by its words: ("arm", "scan") -> its parser."""
    found: dict[tuple[str, ...], argparse.ArgumentParser] = {}

    def walk(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> None:
        groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not groups:
            found[words] = parser
        for group in groups:
            for name, child in group.choices.items():
                walk(child, (*words, name))

    for name in commands():
        walk(_subparsers(build_parser(name)).choices[name], (name,))
    return found


def _subparsers(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    return next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def subcommands(words: list[str]) -> list[str]:
    """["vlar1", "arm", "scan", "--port", "P"] -> ["arm", "scan"]."""
    return next((words[1 : n + 1] for n in (2, 1) if any(leaf[:n] == tuple(words[1 : n + 1]) for leaf in leaves())), [])


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def meant(typed: str) -> list[tuple[str, ...]]:
    """The commands that a mention means: ``arm scan | setup --port P`` is two, ``calibrate`` alone all of its own.

    Empty where one of them does not exist.
    """
    first, _, rest = typed.replace("\\|", "|").partition(" ")
    group = [leaf for leaf in leaves() if leaf[0] == first]
    alternatives = re.match(r"\s*([a-z][\w-]*(?:\s*\|\s*[a-z][\w-]*)*)", rest)
    if alternatives is None or any(len(leaf) == 1 for leaf in group):
        return group
    named = [(first, name) for name in re.split(r"\s*\|\s*", alternatives[1])]
    return named if set(named) <= set(group) else []


_MENTION = re.compile(r"(?:^|[\s/(])vlar1 ([A-Za-z][^`\n]*)")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_that_is_named_exists(page: str) -> None:
    """In blocks, tables and sentences alike, with placeholders or without."""
    typed = [line for block in blocks(page) for line in block.lines] + _INLINE.findall(prose(page))
    for text in typed:
        for mention in _MENTION.findall(text):
            found = meant(mention)
            assert found or mention.split()[0] in ("COMMAND", "SUBCOMMAND"), f"{page}: there is no `vlar1 {mention}`"
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", mention):
                assert any(option in options(leaves()[leaf]) for leaf in found), f"{page}: `vlar1 {mention}`: {option}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_blocks_are_whole(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The parser takes them as they stand: nothing required is missing, every choice is one."""
    for block in blocks(page):
        if block.language not in COMMANDS:
            continue
        for line in block.lines:
            words = shlex.split(line)
            if "vlar1" not in words[0].rpartition("/")[2]:
                continue
            words = words[1 : next((i for i, word in enumerate(words) if word in ("|", ">", "2>", "&&")), None)]
            try:
                build_parser(words[0]).parse_args(words)
            except SystemExit as end:
                assert end.code == 0, f"{block.where}: {line}: {capsys.readouterr().err}"


ELSEWHERE = {
    "--device": "docker",
    "--ulimit": "docker",
    "--runtime": "docker",
    "--network": "docker",
    "--weight-format": "optimum-cli",
}
"""Options that pages name alone, of other people's programs."""


@pytest.mark.parametrize("page", PAGES)
def test_options_named_alone_are_of_some_command(page: str) -> None:
    known = {option for parser in leaves().values() for option in options(parser)} | set(ELSEWHERE)
    known |= set(re.findall(r'"(--[a-z-]+)"', "".join(p.read_text() for p in (ROOT / "benchmarks").rglob("*.py"))))
    for text in _INLINE.findall(prose(page)):
        if text.startswith("--"):
            assert text.split()[0].partition("=")[0] in known, f"{page}: {text}"


# Error texts


@cache
def templates() -> list[str]:
    """Every text in the code, with \0 for what is filled in."""
    found = []
    for room in ("edge", "drivers", "calib", "export"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                    found.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if "| it says |" in text_of(page)])
def test_error_texts_are_those_of_the_code(page: str) -> None:
    """In tables under "it says"; ``...`` stands for what is filled in."""
    table = re.search(r"^\| it says \|.*\n\|.*\n((?:\|.*\n)+)", text_of(page), re.MULTILINE)
    assert table
    for row in table[1].splitlines():
        column = re.sub(r"\([^)]*\)", "", row.split(" | ")[0])
        for text in _INLINE.findall(column):
            pattern = re.compile(".*".join(map(re.escape, text.split("..."))), re.DOTALL)
            assert any(pattern.search(template) for template in templates()), f"{page}: {text}"


# Modules, files, links


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_is_there(page: str) -> None:
    typed = [line for block in blocks(page) for line in block.lines] + _INLINE.findall(prose(page))
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("build", "runs", "shared")}
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for text in typed:
        for module, rest in re.findall(r"python -m (benchmarks\.\w+)(.*)", text):
            if module == "benchmarks.NAME":
                continue
            path = ROOT / f"{module.replace('.', '/')}.py"
            assert path.is_file(), f"{page}: {module}"
            for option in re.findall(r"(?<![\w-])--[a-z-]+", rest):
                assert f'"{option}"' in path.read_text(), f"{page}: {module} {option}"
        for target in re.findall(r"(?:^|&& )make ([a-z]+)", text):
            assert target in targets, f"{page}: make {target}"
        if re.fullmatch(r"[\w./-]+", text) and "/" in text and text.split("/")[0] in rooms:
            assert any((ROOT / f"{text.rstrip('/')}{suffix}").exists() for suffix in ("", ".py")), f"{page}: {text}"


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page}: {target}"


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(([^)#\s]+)", text_of("README.md")))
    for page in PAGES[1:]:
        folder = page.removesuffix("/README.md")
        assert {page, folder} & linked, page
