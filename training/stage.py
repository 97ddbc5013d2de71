"""What both training stages share: their data, how they save, resume and stop, what they show."""

from __future__ import annotations

import json
import os
import shutil
import signal
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import datasets
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import is_peft_model
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ProgressCallback

from drivers.errors import UserError
from edge.preprocess import smart_resize
from training.checkpoint import STEP_FOLDER, damage_of, first_line, load_model, newest_checkpoint, save_checkpoint
from training.data.sharegpt import Item, load_image, read_items
from training.processor import ImageTextProcessor
from training.progress import Report, plot_curves

EVERY = 10  # steps between two lines of the log


@dataclass(frozen=True)
class Example:
    """An item and the folder its image path is relative to."""

    folder: Path
    item: Item


# --- data


def read_examples(paths: Sequence[Path], out: Path, console: Console) -> list[Example]:
    """The items of ShareGPT JSON files whose images can be read.

    What is left out is listed with its reason on the console (the first ten) and in ``out/left-out.jsonl``.

    Raises:
        UserError: a file cannot be read, nothing is left, or ``out`` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror}); name another folder") from None
    examples: list[Example] = []
    left_out: list[dict[str, Any]] = []
    for path in paths:
        items, bad = read_items(path)
        left_out += [{"file": str(path), "index": b.index, "reason": b.reason} for b in bad]
        examples += [Example(path.parent, item) for item in items]
    images = list({e.folder / e.item.image: e for e in examples}.items())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda pair: _what_is_wrong(pair[1]), images)
        silent = not console.is_terminal
        reasons = track(found, "reading images", len(images), console=console, transient=True, disable=silent)
        wrong = {path: reason for (path, _), reason in zip(images, reasons, strict=True) if reason}
    for path, reason in wrong.items():
        left_out.append({"image": str(path), "reason": reason})
    examples = [e for e in examples if e.folder / e.item.image not in wrong]
    listing = out / "left-out.jsonl"
    if left_out:
        listing.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in left_out))
        for entry in left_out[:10]:
            where = f"{entry['file']}: item {entry['index']}: " if "file" in entry else ""
            console.print(f"left out: {where}{entry['reason']}", markup=False)
        console.print(f"{len(left_out)} left out, listed in {listing}; {len(examples)} items remain")
    else:
        listing.unlink(missing_ok=True)
    if not examples:
        raise UserError(f"--data {', '.join(map(str, paths))}: no item can be used; see {listing}")
    return examples


def _what_is_wrong(example: Example) -> str | None:
    try:
        smart_resize(*load_image(example.folder, example.item).shape[:2])
    except UserError as error:
        return str(error)
    except ValueError as error:
        return f"{example.folder / example.item.image}: {error}"
    return None


def lazy_dataset(examples: Sequence[Example], columns: dict[str, list[Any]]) -> datasets.Dataset:
    """A dataset of ``columns`` (one value an example) and ``images``, read when an example is taken."""
    indexed = datasets.Dataset.from_dict({**columns, "index": list(range(len(examples)))})

    def fill(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [examples[k] for k in batch.pop("index")]
        return {**batch, "images": [[load_image(e.folder, e.item)] for e in rows]}

    return indexed.with_transform(fill)


# --- runs


def common_arguments(out: Path, seed: int, save_every: int) -> dict[str, Any]:
    """Arguments of `TrainingArguments` that both stages have: where it writes, what it keeps, how it computes.

    Raises:
        UserError: several GPUs are visible to one process, or the seed is none.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: expected 0 to {2**32 - 1}")
    gpu, processes = torch.cuda.is_available(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.device_count() > 1 and "WORLD_SIZE" not in os.environ:
        launch = "accelerate launch --config_file training/configs/fsdp.yaml -m edge.cli train ..."
        raise UserError(f"several GPUs are visible: start with {launch}, or show one with CUDA_VISIBLE_DEVICES=0")
    transformers.utils.logging.set_verbosity_error()  # what concerns the user, this project says itself
    warnings.filterwarnings("ignore", "mtime may not be reliable")  # it then goes by the number in the name, as we do
    datasets.disable_progress_bars()
    return {
        "output_dir": str(out),
        "seed": seed,
        "save_steps": save_every,
        "save_total_limit": 2,  # the newest, and one to fall back to when it is damaged
        "logging_steps": EVERY,
        "logging_first_step": True,
        "logging_dir": str(out / "logs"),
        "report_to": ["tensorboard"],
        "disable_tqdm": True,
        "use_cpu": not gpu,
        "bf16": True,
        "gradient_checkpointing": gpu,
        "dataloader_num_workers": max(1, min(16, (os.cpu_count() or 1) // processes)) if gpu else 0,
        "dataloader_pin_memory": gpu,
        "remove_unused_columns": False,
    }


def lora_config(rank: int, freeze_vision: bool) -> Any:
    """Adapters on every linear layer of the language model, and of the vision tower's blocks unless it is frozen."""
    from peft import LoraConfig

    where = "language_model" if freeze_vision else "(language_model|visual\\.blocks)"
    layers = "(qkv|proj|[qkvo]_proj|gate_proj|up_proj|down_proj)"
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.05,
        target_modules=rf".*{where}.*\.{layers}",
        task_type="CAUSAL_LM",
    )


def finish(last: Path, base: Path, processor: ImageTextProcessor, out: Path) -> Path:
    """``out/checkpoint`` from the last ``checkpoint-N``, adapters merged into ``base``; by the main process alone."""
    folder = out / "checkpoint"
    state = PartialState()
    unset_hf_deepspeed_config()  # under ZeRO-3, loading would wait for the other processes to take their shards
    if state.is_main_process:
        if (last / "adapter_config.json").is_file():
            from peft import PeftModel

            model = PeftModel.from_pretrained(load_model(base), last).merge_and_unload()
        else:
            model = load_model(last)
        save_checkpoint(model, processor, folder)
    state.wait_for_everyone()
    return folder


def start_run(out: Path, settings: dict[str, Any], resume_from: Path | None = None) -> None:
    """Write the settings of a new run to ``out/run.json``; a run that is there already must have the same.

    So must the run that ``resume_from``, one of its checkpoints, is of.

    Raises:
        UserError: another run's folder or one that cannot be written, or ``resume_from`` cannot be gone on from.
    """
    path, mine = out / "run.json", json.loads(json.dumps(settings))
    if resume_from:
        option = f"--resume-from {resume_from}"
        if resume_from.resolve().parent == out.resolve():
            raise UserError(f"{option}: is in --out, where newer ones stay the newest; name another --out")
        if damage := damage_of(resume_from):
            raise UserError(f"{option}: {damage}; expected a {STEP_FOLDER}N of a run")
        _same_settings(resume_from.resolve().parent / "run.json", mine, option, "name one of a run with the same")
    try:
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(mine, indent=2) + "\n")
            partial.replace(path)
            return
    except OSError as error:
        raise UserError(f"--out {out}: cannot be used ({error.strerror}); name another folder") from None
    _same_settings(path, mine, f"--out {out}", "name another --out")


def _same_settings(path: Path, mine: dict[str, Any], option: str, advice: str) -> None:
    try:
        theirs = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be read ({error.strerror}); {advice}") from None
    except ValueError:
        raise UserError(f"{path}: is not JSON; {advice}") from None
    if theirs != mine:
        names = sorted(k for k in {*theirs, *mine} if theirs.get(k) != mine.get(k))
        was = ", ".join(f"{k} {theirs.get(k)} (now {mine.get(k)})" for k in names)
        raise UserError(f"{option}: holds a run with other settings: {was}; {advice}")


class StageMixin(Trainer):
    """Before TRL's trainer in a class's bases: broken weights are not saved, a half checkpoint is not left behind."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise UserError(self._advice(f"step {self.state.global_step + 1}: the loss is {loss.item()}"))
        return loss

    def check_weights(self) -> None:
        """Raise UserError where a weight that is trained is no longer finite."""
        assert self.model is not None
        for name, p in self.model.named_parameters():
            mine = p.to_local() if hasattr(p, "to_local") else p  # this rank's part
            if p.requires_grad and not torch.isfinite(mine).all():
                step = self.state.global_step
                raise UserError(self._advice(f"step {step}: the weights are no longer finite ({name})"))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        self.check_weights()
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors each have their own way
            shutil.rmtree(Path(str(self.args.output_dir)) / f"{STEP_FOLDER}{step}", ignore_errors=True)
            done = f"step {step}: the checkpoint cannot be written ({first_line(error)})"
            raise UserError(f"{done}; {self._kept()}; make room, then give the same command again") from None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Transformers saves Qwen2.5-VL's weights under other names than the model's own, and its Trainer, which reads
        # them without a look at those names, would silently go on from the weights that the run began with.
        if model is None and not is_peft_model(self.model):
            assert self.model is not None
            self.model.load_state_dict(load_model(Path(resume_from_checkpoint)).state_dict())
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    # A resumed Trainer goes by the forward pass's size and the steps between checkpoints that its checkpoint was made
    # with; both may change from one command to the next.

    def _inner_training_loop(self, batch_size: int | None = None, *args: Any, **kwargs: Any) -> Any:
        return super()._inner_training_loop(self.args.train_batch_size, *args, **kwargs)

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        self.state.compute_steps(self.args, self.state.max_steps)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """TRL writes one beside every checkpoint; the run's own record is run.json."""

    def _advice(self, what: str) -> str:
        return f"{what}; {self._kept()}; lower --lr or look at the data, into another --out"

    def _kept(self) -> str:
        kept = newest_checkpoint(Path(str(self.args.output_dir)))
        return f"the last good checkpoint is {kept}" if kept else "there was no checkpoint yet"


def run_trainer(trainer: Any, out: Path, console: Console, resume_from: Path | None = None) -> Path | None:
    """Train, from the newest complete checkpoint in ``out`` on, or else from ``resume_from`` where that is given.

    Returns:
        The last step's ``checkpoint-N``; None where the run was asked to stop before.

    Raises:
        UserError: the loss is no longer finite, an image cannot be read any more, or the disk is full; the last good
            checkpoint is kept.
    """
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    resume = newest_checkpoint(out, console) or resume_from
    if resume:
        console.print(f"going on from {resume}")
        begun = TrainerState.load_from_json(str(resume / TRAINER_STATE_NAME))
        steps = trainer.args.max_steps if trainer.args.max_steps > 0 else begun.max_steps
        if begun.global_step >= steps:
            return resume  # Trainer would take one step more before it looks
    report = Report(console)
    trainer.add_callback(report)
    with stop_on_signals(trainer):
        try:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except UserError as error:  # a data loader's worker hands one over at the end of a traceback
            said = str(error).strip().splitlines()[-1]
            raise UserError(said.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")) from None
        except OSError as error:
            kept = newest_checkpoint(out)
            raise UserError(f"{out}: {error}; the last good checkpoint is {kept}") from None
        finally:
            report.close()
    state = trainer.state
    if trainer.accelerator.is_main_process:
        plot_curves(state.log_history, out / "curves.png")
    done = newest_checkpoint(out)
    if state.global_step < state.max_steps:
        console.print(f"stopped at step {state.global_step} of {state.max_steps}; give the same command again to go on")
        return None
    return done


@contextmanager
def stop_on_signals(trainer: Any) -> Iterator[None]:
    """SIGINT or SIGTERM: finish the step, save, stop. A second one has its usual effect."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    stop = _Stop(trainer)

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        signal.signal(number, before[signal.Signals(number)])

    trainer.add_callback(stop)
    for s in before:
        signal.signal(s, ask)
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


class _Stop(TrainerCallback):
    def __init__(self, trainer: Any):
        self.accelerator, self.asked = trainer.accelerator, False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        asked = self.asked
        if self.accelerator.num_processes > 1:  # every rank must stop at the same step
            if asked:
                self.accelerator.set_trigger()
            asked = self.accelerator.check_trigger()
        if asked:
            control.should_save = control.should_training_stop = True
        return control
