"""What was verified, as a table for a person."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from export import tasks
from export.quantize import Quantization
from export.verify import FP32_LOGITS_RELATIVE, LEAST, Agreement, Verification


def show(console: Console, result: Verification, quantization: Quantization) -> None:
    """Print the verification of a bundle, one line a figure."""
    table = Table("beside Transformers in fp32", "found", "asked for", box=box.SIMPLE_HEAD, pad_edge=False)
    _add_agreement(table, "", result.agreement, quantization)
    if result.tensorrt is not None:
        _add_agreement(table, "TensorRT's ", result.tensorrt, quantization)
    layers = result.layers
    lowest = min(layers.cosines, key=lambda name: layers.cosines[name])
    table.add_row("hidden states, least cosine", f"{layers.cosines[lowest]:.5f}, {lowest}")
    table.add_row(f"  first below {layers.least:g}", layers.first_below or "none")
    if result.tasks is not None:
        _add_tasks(table, result.tasks)
    console.print(table)
    if result.tasks is None:
        console.print("Boxes and paths are not judged: nobody said which are right in these images.")
    else:
        console.print(f"Boxes and paths on simulated tables; {result.tasks.note}.")


def _add_agreement(table: Table, whose: str, found: Agreement, quantization: Quantization) -> None:
    share, cosine, within = "all", "", f"{FP32_LOGITS_RELATIVE:g} of the largest"
    if quantization != "fp32":
        share, cosine, within = f"{LEAST[quantization][1]:.0%}", f"{LEAST[quantization][0]:g}", ""
    table.add_row(f"{whose}greedy tokens the same", f"{found.greedy_agreement:.1%} of {found.tokens}", share)
    table.add_row(f"{whose}logits, mean cosine", f"{found.logits_cosine_mean:.5f}", cosine)
    difference = f"{found.logits_max_abs_diff:.2g}, largest {found.logits_max_abs:.3g}"
    table.add_row(f"{whose}logits, largest difference", difference, within)


def _add_tasks(table: Table, found: tasks.Tasks) -> None:
    before, after = found.before, found.after
    figures = [
        (f"IoU of {after.boxes} boxes, mean", before and before.iou, after.iou, "lower"),
        (f"distance of {after.paths} paths, mean", before and before.distance, after.distance, "larger"),
    ]
    for name, then, now, worse in figures:
        if now is None:
            continue
        bound = f"at most {tasks.MOST_WORSE:g} {worse}" if then is not None else ""
        table.add_row(name, f"{now:.3f}" if then is None else f"{then:.3f} before, {now:.3f} after", bound)
