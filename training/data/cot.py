"""``vlar1 data cot``: a teacher model writes the reasoning of labelled images (the VLA-CoT engine)."""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.prompt import Confirm

from drivers.errors import UserError
from training.data.bad_items import bad_path, report_bad
from training.data.convert import moved
from training.data.cot_job import Job, estimate, image_size
from training.data.cot_journal import Journal, keys
from training.data.cot_question import Rejected, accepted, question, with_reasoning
from training.data.sharegpt import Bad, Item, read_items, write_items
from training.data.teacher import Endpoint, Malformed, NoAnswer, Teacher

# The teacher is asked coolly first; an answer that was refused once would come again at the same temperature.
COOL, WARMER, HOTTEST = 0.2, 0.3, 1.0


@dataclass
class Tally:
    """What became of the items of this run."""

    started: int = 0
    accepted: int = 0
    bad: list[Bad] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)  # answers, by kind of reason
    failed_in_a_row: int = 0  # items about which the endpoint said nothing


def add_parser(commands: Any) -> None:
    """Add ``cot`` to the sub-commands of ``vlar1 data``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "cot",
        help="let a teacher model write the reasoning of labelled images",
        description="Each accepted reasoning is on disk at once (OUT's .journal.jsonl); the same command again does "
        "what is missing. Items that were refused are in OUT's .bad.json and are tried again. The key is read from "
        "OPENAI_API_KEY; a server that needs none takes any.",
    )
    parser.add_argument("input", type=Path, metavar="INPUT.json", help="ShareGPT JSON with labels")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.json")
    parser.add_argument("--endpoint", required=True, metavar="URL", help="OpenAI-compatible, e.g. http://host:8000/v1")
    parser.add_argument("--model", required=True, metavar="NAME", help="as served, e.g. Qwen/Qwen2.5-VL-72B-Instruct")
    parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="requests at once (default: 8)")
    parser.add_argument("--requests-per-minute", type=float, metavar="N", help="default: no limit")
    parser.add_argument("--attempts", type=int, default=4, metavar="N", help="answers to ask for an item (default: 4)")
    parser.add_argument("--price-in", type=float, metavar="$", help="price of a million tokens read, for the estimate")
    parser.add_argument("--price-out", type=float, metavar="$", help="price of a million tokens written")
    parser.add_argument("--yes", action="store_true", help="start without asking")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Ask for what is missing and write OUT; 0 when at least one item has its reasoning, 1 when told not to start."""
    _check(args)
    endpoint = Endpoint(args.endpoint, args.model, args.requests_per_minute)
    prices = None if args.price_in is None else (args.price_in, args.price_out)

    def agree(jobs: Sequence[Job]) -> bool:
        print("\n".join(estimate(jobs, args.attempts, prices)))
        return args.yes or _confirmed()

    return write_reasoning(args.input, args.out, endpoint, args.concurrency, args.attempts, agree)


def write_reasoning(
    source: Path,
    out: Path,
    endpoint: Endpoint,
    concurrency: int = 8,
    attempts: int = 4,
    agree: Callable[[Sequence[Job]], bool] = lambda jobs: True,
) -> int:
    """Give each item of `source` the teacher's reasoning where its own answer agrees with the label.

    Args:
        source: ShareGPT JSON; its items' own reasoning is not used.
        out: ShareGPT JSON of the accepted items in the order of `source`, written when all have been tried.
        endpoint: the teacher.
        concurrency: requests at once, at most.
        attempts: answers to ask for an item; the last one of several shows the label (`training.data.cot_question`).
        agree: shown what will be asked before the first request; False leaves everything as it is.

    Raises:
        UserError: a file cannot be read or written, the endpoint refuses or does not answer, or no item was accepted.
    """
    if out.suffix != ".json" or out.is_dir():
        raise UserError(f"--out {out}: expected the name of a .json file")
    if out.resolve() == source.resolve():
        raise UserError(f"--out {out}: is INPUT itself; give another name")
    items, bad = read_items(source)
    unusable = {entry.index for entry in bad}
    indices = [index for index in range(len(items) + len(bad)) if index not in unusable]
    names = keys(items)
    tally = Tally(bad=bad)
    with Journal(out) as journal:
        jobs: list[Job] = []
        for index, name, item in zip(indices, names, items, strict=True):
            if name not in journal.done:
                image = source.parent / item.image
                try:
                    jobs.append(Job(index, name, item, image, image_size(image)))
                except UserError as error:
                    bad.append(Bad(index, str(error)))
        if jobs and not agree(jobs):
            return 1
        try:
            asyncio.run(_work(jobs, endpoint, concurrency, attempts, journal, tally))
        except KeyboardInterrupt:
            print(f"{journal.path}: {len(journal.done)} items are safe in it; the same command goes on from there")
            raise
        finally:
            with _writing(out):
                report_bad(out, sorted(bad, key=lambda entry: entry.index))
        done = [
            moved(_reasoned(item, journal.done[name]), source.parent, out.parent)
            for name, item in zip(names, items, strict=True)
            if name in journal.done
        ]
        if not done:
            raise UserError(f"{source}: no item got a reasoning; why not is in {bad_path(out)}")
        with _writing(out):
            write_items(out, done)
    shown = sum(bool(item.more["cot"].get("label_shown")) for item in done)
    print(f"{out}: {len(done)} items with reasoning ({shown} written with the label shown), {len(bad)} without")
    if tally.refused:
        print("answers refused: " + ", ".join(f"{kind} {n}" for kind, n in tally.refused.most_common()))
    return 0


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = f"{out}: cannot be written ({error.strerror})"
        raise UserError(f"{why}; free space and run again: what was accepted is in the journal") from None


async def _work(
    jobs: Sequence[Job], endpoint: Endpoint, concurrency: int, attempts: int, journal: Journal, tally: Tally
) -> None:
    """Ask about all jobs, `concurrency` at a time; the first error that concerns all of them ends it."""
    left = iter(jobs)
    columns = (TextColumn("asking the teacher"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[state]}")) as progress:
        line = progress.add_task("", total=len(jobs), state="")
        known_bad = len(tally.bad)

        async def worker(teacher: Teacher, left: Iterator[Job]) -> None:
            for job in left:
                tally.started += 1
                await _ask(job, teacher, attempts, journal, tally)
                rejected = len(tally.bad) - known_bad
                retries = teacher.sent - tally.started
                state = f"accepted {tally.accepted}, rejected {rejected}, retries {max(retries, 0)}"
                progress.update(line, completed=tally.accepted + rejected, state=state)
                if tally.failed_in_a_row >= max(concurrency, 3):
                    why = tally.bad[-1].reason
                    raise UserError(f"{endpoint.url}: {why}; what was accepted is kept, the same command goes on")

        async with Teacher(endpoint) as teacher:
            tasks = [asyncio.create_task(worker(teacher, left)) for _ in range(min(concurrency, len(jobs)))]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(job: Job, teacher: Teacher, attempts: int, journal: Journal, tally: Tally) -> None:
    """Ask about one item until an answer can be used; the journal or `tally.bad` has it then."""
    why, heard = "", False
    try:
        image_url = job.image_url()
    except UserError as error:
        tally.bad.append(Bad(job.index, str(error)))
        return
    for attempt in range(attempts):
        shown = 0 < attempt == attempts - 1
        messages = question(job.item, image_url, job.size_px, shown)
        try:
            text = await teacher.ask(messages, min(COOL + WARMER * attempt, HOTTEST))
            tally.failed_in_a_row = 0
            reasoning = accepted(text, job.item, shown)
        except NoAnswer as error:
            tally.failed_in_a_row += 1
            tally.bad.append(Bad(job.index, f"the endpoint gave no answer: {error}"))
            return
        except Malformed as error:
            tally.refused["malformed"] += 1
            why, heard = str(error), False
        except Rejected as error:
            tally.refused[error.kind] += 1
            why, heard = str(error), True
        else:
            cot = {"model": teacher.endpoint.model, "attempt": attempt + 1, "label_shown": shown}
            journal.append(job.key, reasoning, cot)
            tally.accepted += 1
            return
    if not heard:
        tally.failed_in_a_row += 1
    tally.bad.append(Bad(job.index, f"{why}; after {attempts} attempts"))


def _check(args: argparse.Namespace) -> None:
    for name in ("concurrency", "attempts"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: expected at least 1")
    rate = args.requests_per_minute
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise UserError(f"--requests-per-minute {rate:g}: expected a number above 0")
    if (args.price_in is None) != (args.price_out is None):
        raise UserError("--price-in and --price-out: give both or neither")
    for price in (args.price_in, args.price_out):
        if price is not None and not (math.isfinite(price) and price >= 0):
            raise UserError(f"--price-in and --price-out: {price:g} is no price")
    try:
        url = urlparse(args.endpoint)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        usable = False
    if not usable or not args.endpoint.isprintable() or " " in args.endpoint:
        raise UserError(f"--endpoint {args.endpoint}: expected a URL such as http://localhost:8000/v1")


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise UserError("nobody is there to confirm the estimate; add --yes to start without asking")
    try:
        return Confirm.ask("Start?", default=False)
    except EOFError:
        return False


def _reasoned(item: Item, done: dict[str, Any]) -> Item:
    return replace(item, answer=with_reasoning(item, done["reasoning"]), more={**item.more, "cot": done["cot"]})
