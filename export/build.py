"""Checkpoint to verified bundle: check, make part by part, describe, verify, and only then put in place."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from drivers.errors import UserError
from edge.engine.bundle import EMBEDDING, MANIFEST, TOKENIZER, load_bundle
from export import layers, manifest, questions, reference, resources, tasks, verify
from export.assemble import Assembly
from export.plan import Engines, Plan, ends, parts, plan_export
from export.quantize import Quantization, write_table
from export.questions import Question
from export.shards import EMBEDDING as EMBEDDING_WEIGHT
from export.shards import checkpoint_sha256

# Simulated tables that boxes and paths are judged on, for a checkpoint whose answers come quickly. With 32, of which 12
# ask for a box that is there, one answer that fell either way moved the mean by more than the bound.
N_TABLES = 96
_OLD = "old"
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def export_bundle(
    checkpoint: Path,
    out: Path,
    quantization: Quantization,
    sizes_px: Sequence[tuple[int, int]],
    images: Path | None,
    engine: Engines = "onnx",
) -> verify.Verification:
    """Make the bundle `out` of a checkpoint folder as `save_pretrained` leaves it.

    The bundle is built in a folder beside `out` and takes its place at the end; whatever goes wrong, `out` stays as it
    was. What an interrupted export has finished, the next one of the same kind takes over.

    Args:
        checkpoint: config.json, tokenizer.json and safetensors, in one file or in several with their index.
        out: the bundle's folder; an older bundle there is replaced, any other folder with something in it is not.
        quantization: of the weights.
        sizes_px: width and height of the images that the vision graphs take; the first is the default.
        images: folder of images to verify on; None renders some of the simulated table.
        engine: whose graphs to write.

    Raises:
        UserError: the checkpoint, the sizes, the images or `out` cannot be used, memory or disk are too small, or the
            bundle disagrees with Transformers.
    """
    out = Path(os.path.realpath(out))
    _check_out(out)
    plan = plan_export(checkpoint, quantization, sizes_px, engine)
    asked = questions.of_folder(images) if images else []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror}); name another folder") from None
    try:
        with _locked(out):
            left = (path for folder in _work_folders(out) for path in folder.rglob("*") if path.is_file())
            resources.require(resources.estimate(plan), out, sum(path.stat().st_size for path in left))
            with Progress(*_COLUMNS) as progress:
                return _export(plan, checkpoint, out, asked, images, progress)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"--out {out}: its disk is full; free some and run this again, it goes on where it stopped"
        ) from None


def _export(
    plan: Plan, checkpoint: Path, out: Path, asked: list[Question], images: Path | None, progress: Progress
) -> verify.Verification:
    if not images:
        n_tables = N_TABLES if resources.is_small(plan) else questions.N_CASES
        asked = questions.made_up(n_tables, _bar(progress, "simulated tables", n_tables))
    asked = [asked[i % len(asked)] for i in range(max(len(asked), len(plan.sizes_px)))]
    advance = _bar(progress, "reading the checkpoint", len(plan.shards.files))
    sha256 = checkpoint_sha256(plan.shards.files, advance)
    source = {"checkpoint": checkpoint.resolve().name, "sha256": sha256}
    with _work_folder(out, _key(plan, sha256)) as work:
        described = _make(plan, work, source, progress)
        manifest.write_manifest(work / "bundle", described)
        result = _verify(plan, work, source, asked, progress)
        verify.require(result, plan.quantization)
        seen = images.resolve().name if images else "simulated tables"
        described["verification"] = result.as_dict() | {"images": seen}
        if "tensorrt" in plan.engines and result.tensorrt is None:
            described["verification"]["tensorrt"] = "not run: the checkpoint is too large to run them without a GPU"
        if "onnx" not in plan.engines:
            _drop_onnx(work, described)
        manifest.write_manifest(work / "bundle", described)
        _put_in_place(work / "bundle", out)
    return result


def _check_out(out: Path) -> None:
    """Raises UserError where something is at `out` that must not be replaced."""
    if os.path.ismount(out):
        raise UserError(f"--out {out}: is where a disk is mounted; name a folder in it")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        found = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not {"schema", "files", "model"} <= found.keys():
        raise UserError(f"--out {out}: is there already and is not a bundle; name another folder")


def _make(plan: Plan, work: Path, source: dict[str, str], progress: Progress) -> dict[str, Any]:
    """Everything of the bundle in ``work/bundle``; its manifest, which is not written yet."""
    folder, steps = work / "bundle", parts(plan, work)
    advance = _bar(progress, f"graphs, {plan.quantization}", len(steps) + 1)
    assembly = Assembly(work)
    for part in steps:
        assembly.add(part.graph, part.data, part.make)
        advance()
    assembly.finish(ends(plan))
    described = manifest.describe(plan, source)
    vocab, hidden = plan.shards.shape(EMBEDDING_WEIGHT)
    described["embedding"] = write_table(
        folder / EMBEDDING,
        lambda start, stop: plan.shards.rows(EMBEDDING_WEIGHT, start, stop).numpy(),
        vocab,
        hidden,
        plan.quantization,
    )
    advance()
    (folder / TOKENIZER).write_text(plan.tokenizer_json, encoding="utf-8")
    if "tensorrt" in plan.engines:
        described["tensorrt"] = _tensorrt(plan, work, progress)
    described["files"] = manifest.list_files(folder)
    return described


def _tensorrt(plan: Plan, work: Path, progress: Progress) -> dict[str, Any]:
    from export.tensorrt import export_tensorrt, tensorrt_steps

    done = work / "tensorrt.json"
    if done.is_file():
        kept: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return kept
    advance = _bar(progress, f"graphs for TensorRT, {plan.quantization}", tensorrt_steps(plan.config, plan.sizes_px))
    read = plan.shards.__getitem__
    field: dict[str, Any] = export_tensorrt(
        plan.config, read, work / "bundle", plan.sizes_px, plan.quantization, plan.numbers, advance
    )
    done.write_text(json.dumps(field), encoding="utf-8")
    return field


def _verify(
    plan: Plan, work: Path, source: dict[str, str], asked: Sequence[Question], progress: Progress
) -> verify.Verification:
    bundle, asked_once = load_bundle(work / "bundle"), asked[: max(questions.N_CASES, len(plan.sizes_px))]
    cases = verify.bundle_cases(bundle, asked_once, work, _bar(progress, "the bundle's answers", len(asked_once)))
    first, window_px = cases[0], plan.config.vision_config.window_size
    states = layers.hidden_states(bundle, first.ids, first.patches, first.size, window_px)
    advance = _bar(progress, "Transformers reads them", reference.reference_steps(plan.config))
    logits, cosines = reference.read_texts(plan.shards, bundle, cases, states, advance)
    tensorrt = None
    if "tensorrt" in plan.engines and resources.is_small(plan):
        advance = _bar(progress, "TensorRT's graphs read them", len(cases))
        again = verify.tensorrt_cases(bundle, cases, work, advance)
        tensorrt = verify.compare(again, logits, plan.quantization)
    return verify.Verification(
        verify.compare(cases, logits, plan.quantization),
        layers.Layers(cosines, layers.LEAST[plan.quantization]),
        _score(plan, work, source, asked, progress),
        tensorrt,
    )


def _score(
    plan: Plan, work: Path, source: dict[str, str], asked: Sequence[Question], progress: Progress
) -> tasks.Tasks | None:
    """Task figures of the bundle, and of an fp32 one where that is quickly made."""
    if all(question.label is None for question in asked):
        return None
    advance = _bar(progress, "its boxes and paths", len(asked))
    after = tasks.score(load_bundle(work / "bundle"), asked, advance)
    if plan.quantization == "fp32":
        return tasks.Tasks(None, after, "every greedy token of an fp32 bundle is that of the checkpoint")
    if not resources.is_small(plan):
        return tasks.Tasks(None, after, "the checkpoint is too large to make an fp32 bundle on the way")
    whole = replace(plan, quantization="fp32", sizes_px=plan.sizes_px[:1], engines=("onnx",))
    folder = work / "fp32"
    manifest.write_manifest(folder / "bundle", _make(whole, folder, source, progress))
    advance = _bar(progress, "fp32 boxes and paths", len(asked))
    before = tasks.score(load_bundle(folder / "bundle"), asked, advance)
    return tasks.Tasks(before, after, "before: an fp32 bundle of the same checkpoint")


def _drop_onnx(work: Path, described: dict[str, Any]) -> None:
    """Leave the graphs for ONNX Runtime, which were needed to verify, out of a bundle for TensorRT alone."""
    shutil.rmtree(work / "parts")  # whoever goes on with this folder makes them again
    for name in [name for name in described["files"] if name.endswith((".onnx", ".data")) and "/" not in name]:
        (work / "bundle" / name).unlink()
        del described["files"][name]


def _bar(progress: Progress, what: str, total: int) -> Callable[[], None]:
    task = progress.add_task(what, total=total)
    return lambda: progress.advance(task)


def _key(plan: Plan, checkpoint_hash: str) -> str:
    """What the finished parts of an interrupted export depend on, as one hash."""
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    what = [checkpoint_hash, plan.quantization, plan.sizes_px, plan.engines, manifest.versions(), code]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _work_folders(out: Path) -> list[Path]:
    return sorted(out.parent.glob(f".{glob.escape(out.name)}.export-*"))


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """No other export writes `out` meanwhile. Raises UserError where one does."""
    path = out.parent / f".{out.name}.export.lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino
        except BlockingIOError:
            same = False
        if not same:  # or another has ended since, and taken its lock away
            raise UserError(f"--out {out}: another export is writing it; wait for it, or end it")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _work_folder(out: Path, key: str) -> Iterator[Path]:
    """A folder beside `out` that outlives an interruption, but neither success nor a bundle that is refused."""
    work = out.parent / f".{out.name}.export-{key[:16]}"
    for folder in _work_folders(out):
        if (folder / _OLD).exists() and not out.exists():  # ended between the two renames of _put_in_place
            (folder / _OLD).rename(out)
        if folder != work:  # of another checkpoint or quantization
            shutil.rmtree(folder)
    work.mkdir(exist_ok=True)
    try:
        yield work
    except UserError:
        shutil.rmtree(work)
        raise
    shutil.rmtree(work)


def _put_in_place(folder: Path, out: Path) -> None:
    old = folder.with_name(_OLD)
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise


def size_of(value: str) -> tuple[int, int]:
    """``224x168`` -> (224, 168); raises UserError."""
    sides: Sequence[str] = value.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and side.isascii() for side in sides):
        raise UserError(f"--image-size {value}: expected WIDTHxHEIGHT in pixels, for example 224x168")
    return int(sides[0]), int(sides[1])
