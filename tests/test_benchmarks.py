"""The random checkpoint of the benchmarks is what it says it is; measured runs are compared at one level only; the
servo loop's benchmarks run and write their figures, whatever these are."""

from __future__ import annotations

import base64
import json
import re
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import faulty_hour, hand_eye, runtimes, servo_jitter, stop_latency, vocabulary
from benchmarks import make_random_checkpoint as maker
from drivers.errors import UserError

DEPTHS = ((36, 32), (6, 4), (1, 1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """What is made of a .tiktoken file, and the byte-level BPE that the file was written of, trained by tokenizers."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    reference = Tokenizer(models.BPE())
    reference.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(vocabulary.WORDS), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    reference.pre_tokenizer = pre_tokenizers.Sequence([cut, level])
    reference.decoder = decoders.ByteLevel()
    text = [path.read_text() for path in sorted(Path(maker.__file__).parent.glob("*.py"))]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    reference.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    spelled = {letter: byte for byte, letter in bytes_to_unicode().items()}
    path = tmp_path_factory.mktemp("tokenizer") / "small.tiktoken"
    lines = []
    for token, rank in sorted(reference.get_vocab().items(), key=lambda entry: entry[1]):
        lines.append(f"{base64.b64encode(bytes(spelled[letter] for letter in token)).decode()} {rank}")
    path.write_text("\n".join(lines))
    return vocabulary.from_tiktoken(path), reference


# Without special tokens, which the file does not have; hypothesis finds their names in the code and tries them.
TEXTS = st.text(max_size=40).filter(lambda text: "<|" not in text)


@given(text=TEXTS | st.from_regex(r"[a-z_]{1,8}\([0-9.]{1,6}, [a-z ]{1,20}\)\n", fullmatch=True))
def test_a_tiktoken_file_gives_the_tokenizer_it_was_made_of(trained: tuple[Any, Any], text: str) -> None:
    made, reference = trained
    assert made.encode(text, add_special_tokens=False).ids == reference.encode(text).ids


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("decision --images {tmp}", "holds no .png"),
        ("decision --images {tmp} --bundle {tmp}/none", "none: no such folder"),
        ("decision --images {tmp} --checkpoint {tmp}/none", "none: has no config.json"),
        ("steps --bundle {tmp}/none", "none: no such folder"),
        ("steps --threads 0", "--threads 0: expected one or more"),
        ("runtimes --work {tmp}/new --vision-blocks 0", "--vision-blocks 0: expected 1 or more"),
        ("runtimes --work {tmp}/new --peers-python {tmp}/none", "none: is no program"),
        ("grammar --tokenizer {tmp}/none", "none: No such file"),
        ("make_random_checkpoint {tmp}/file/out --layers 1 --tokenizer {tmp}/none", "file: File exists"),
        ("grammar --pass-ms 0", "--pass-ms 0: expected more than 0"),
        ("servo_jitter --threads 0", "--threads 0: expected one or more"),
        ("stop_latency --stops 0", "--stops 0: expected one or more"),
        ("hand_eye --opencv4 {tmp}/file", "file: is no folder"),
        ("faulty_hour --arms 0", "--arms 0: expected one or more"),
        ("faulty_hour --minutes 0", "--minutes 0: expected more than 0"),
    ],
)
def test_wrong_arguments_are_one_line(
    command: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--bundle" in command and "--images" in command:
        cv2.imwrite(str(tmp_path / "a.png"), np.zeros((168, 224, 3), np.uint8))
    (tmp_path / "file").write_text("")
    name, *arguments = command.format(tmp=tmp_path).split()
    monkeypatch.setattr("sys.argv", [name, *arguments])
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)
    with pytest.raises(SystemExit) as left:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    error = capsys.readouterr().err
    assert left.value.code == 2 and says in error and error.count("\n") == 1


def test_a_token_that_no_merge_makes_is_refused() -> None:
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"abc": 3}
    with pytest.raises(ValueError, match="no merge"):
        vocabulary.halves(b"abc", ranks)


@pytest.mark.parametrize("layers, vision_blocks", DEPTHS)
def test_its_weights_are_those_of_transformers_model(layers: int, vision_blocks: int) -> None:
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**maker.config(layers, vision_blocks)))
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items() if name != "lm_head.weight"}
    found = {}
    for tensor in maker.tensors(layers, vision_blocks):
        name = tensor.name
        for pattern, new in model._checkpoint_conversion_mapping.items():
            name = re.sub(pattern, new, name)
        found[name] = tensor.shape
    assert found == expected


def test_a_small_one_loads_and_its_layers_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    small = {"HIDDEN": 256, "HEADS": 2, "KV_HEADS": 1, "MLP": 96, "VISION_HIDDEN": 64, "VISION_HEADS": 2}
    for name, value in (small | {"VISION_MLP": 48, "SHARD_BYTES": 1_000_000}).items():
        monkeypatch.setattr(maker, name, value)
    for out in ("one", "other"):
        folder = tmp_path / out
        folder.mkdir()
        maker.write_settings(folder, 2, 3)
        maker.write_weights(folder, 2, 3, seed=1)
    index = json.loads((tmp_path / "one" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    for name in {*index.values(), "model.safetensors.index.json", "config.json"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    model, loading = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "one", dtype=torch.float32, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    for part in (model.model.language_model.layers, model.model.visual.blocks):
        first, second = part[0].mlp.gate_proj.weight, part[1].mlp.gate_proj.weight
        assert not torch.equal(first, second)
    ids = torch.arange(1000, 1040)[None]
    with torch.no_grad():
        hidden = model.model.language_model(inputs_embeds=model.get_input_embeddings()(ids)).last_hidden_state
        grid = torch.tensor([[1, 4, 6]])
        image = model.model.visual(torch.randn(24, 1176, generator=torch.Generator().manual_seed(0)), grid_thw=grid)
    assert hidden.isfinite().all() and 0.5 < hidden.std() < 2
    assert image.isfinite().all() and image.std() < 1


def test_what_is_there_already_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there already"):
        maker.make(tmp_path, 1, 1)


def test_a_tokenizer_that_is_none_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is neither a tokenizer.json nor"):
        maker.make(tmp_path / "out", 1, 1, tokenizer=tmp_path / "none.json")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_found_out_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**9})())
    with pytest.raises(UserError, match=r"takes 7\.5 GB, the disk has 1\.0 GB"):
        maker.make(tmp_path / "out", 36, 32, tokenizer=tmp_path / "any.json")
    assert not list(tmp_path.iterdir())


def _report(bandwidth: tuple[float, float], decode_s: float) -> dict[str, object]:
    run = {"vision_s": 0.5, "prefill_s": 0.5, "decode_s": decode_s, "prompt_tokens": 460, "image_tokens": 391}
    sizes = {"load_s": 1.0, "load_peak_bytes": 1, "decision_peak_bytes": 2, "step_bytes": 400_000_000}
    return {"bandwidth": bandwidth, "runs": [run | {"answer_tokens": 128}], **sizes}


def test_runs_at_another_level_of_bandwidth_do_not_count() -> None:
    fast, slow = (80e9, 84e9), (54e9, 54e9)
    reports = [_report(fast, 1.27), _report(slow, 9.0), _report((84e9, 54e9), 9.0), {"error": "killed"}]
    found = runtimes.figures(reports, 82e9)
    assert found is not None and found["runs"] == 1
    assert found["decode_tokens_per_s"] == pytest.approx(100)
    # 400 MB at 82 GB/s are 4.88 ms; a step took 10 ms.
    assert found["times_floor"] == pytest.approx(2.05)
    assert found["total_s"] == pytest.approx(2.27)
    assert runtimes.figures(reports[1:], 82e9) is None


def test_a_contender_that_a_signal_ended_is_reported_so(tmp_path: Path) -> None:
    work = runtimes.Work(tmp_path, 6, 4, sys.executable, 2)
    runtime = runtimes.PEERS[0]
    (tmp_path / f"{runtime.slug}.log").write_text("loading\nimage 3\n")
    assert work.why_it_ended(runtime, -signal.SIGILL).startswith("ended by SIGILL after: image 3 (")
    assert work.why_it_ended(runtime, 1).startswith("image 3 (")


# The servo loop


def figures_of(main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    path = tmp_path / "figures.json"
    monkeypatch.setattr("sys.argv", ["benchmark", "--quick", "--json", str(path)])
    assert not main()
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def test_jitter_is_told_of_both_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servo_jitter, "QUICK_SECONDS", 1.0)
    found = figures_of(servo_jitter.main, tmp_path, monkeypatch)
    for name in ("native", "python"):
        row = found[name]
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["p999_ms"] <= row["max_ms"]
        assert row["p999_abs_error_ms"] <= row["max_abs_error_ms"]
        assert row["cycles"] > 10 and row["missed"] >= 0 and 0 <= row["answered_share"] <= 1
    assert found["native"]["realtime_granted"] is False
    assert found["load"]["answers_per_s"] >= 0 and 0 < found["load"]["machine_busy"] <= 1


def test_periods_and_what_is_missed_in_them() -> None:
    began_s = np.array([0.0, 0.005, 0.010, 0.0255, 0.030])  # two cycles would have fit into 15.5 ms
    found = servo_jitter.period_figures(began_s, np.full(5, 0.001), 0.0, 1.0)
    assert found["missed"] == 2 and found["cycles"] == 4
    assert found["max_ms"] == pytest.approx(15.5) and found["max_abs_error_ms"] == pytest.approx(10.5)
    assert found["busy_max_ms"] == pytest.approx(1.0)


def test_stops_are_told_from_the_wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_latency, "KINDS", ("stop", "killed"))
    found = figures_of(stop_latency.main, tmp_path, monkeypatch)["idle"]
    for row in found.values():
        assert 0 < row["to_decelerating_ms"]["p50"] <= row["to_decelerating_ms"]["worst"]
        assert row["to_decelerating_ms"]["p50"] < row["to_standstill_ms"]["p50"]
    assert found["stop"]["hold_began_ms"]["p50"] > 0


def test_the_first_step_that_is_a_count_short_is_found() -> None:
    steps = np.array([8] * 20 + [7, 7, 6, 3, 0, 0])
    counts = np.cumsum(steps)[:, None].repeat(2, axis=1)
    t_s = 0.005 * np.arange(len(counts))
    found = stop_latency.decelerating_and_still(t_s, counts, 0.01, 0.092)
    assert found == pytest.approx((0.1, 0.115))
    assert stop_latency.decelerating_and_still(t_s, counts, 0.01, 0.11) is None  # it fell back before the stop
    assert stop_latency.decelerating_and_still(t_s[:20], counts[:20], 0.01, 0.05) is None


def test_an_hour_on_a_bad_line_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "QUICK_ARMS": 1,
        "QUICK_MINUTES": 3 / 60,
        "QUICK_UNPLUGS": 1,
        "QUICK_MOTION_CYCLES": 3000,
    }.items():
        monkeypatch.setattr(faulty_hour, name, value)
    found = figures_of(faulty_hour.main, tmp_path, monkeypatch)
    assert found["held"] and found["line"]["exceptions"] == [] and found["line"]["loops_ended"] == 0
    assert found["line"]["setpoints"] > 50 and found["line"]["done"]["requests"] > 50
    assert found["line"]["counted"]["lost"] == found["line"]["counted"]["reopened"] == 1
    assert found["motion"]["cycles"] >= 3000
    for part in ("line", "motion"):
        assert all(row["over"] == 0 for row in found[part]["limits"].values())


@pytest.mark.parametrize(("order", "name"), [(0, "position"), (1, "velocity"), (2, "acceleration")])
def test_the_wires_judge_sees_what_is_beyond_a_limit(order: int, name: str) -> None:
    from drivers.robot import load_robot

    robot = load_robot()
    limits, period_s = robot.limits, servo_jitter.PERIOD_S
    t_s = (np.arange(61) - 30) * period_s
    middle, half = (robot.lower_rad + robot.upper_rad) / 2, (robot.upper_rad - robot.lower_rad) / 2
    for share, over in ((0.98, False), (1.05, True)):
        paths = (
            np.tile(half * share, (61, 1)),
            np.outer(t_s, limits.velocity_rad_s * share),
            np.outer(t_s**2 / 2, limits.acceleration_rad_s2 * share),
        )
        counts = np.rint((middle + paths[order]) / servo_jitter.RAD_PER_COUNT)
        found = faulty_hour.on_the_wire([counts * servo_jitter.RAD_PER_COUNT], robot)
        assert (found[name]["over"] > 0) is over, (name, share, found)
        assert all(row["over"] == 0 for other, row in found.items() if other != name)


# The hand-eye calibration


def test_calibrations_are_judged_by_the_tip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"QUICK_TRIALS": 4, "POOL": 20}.items():
        monkeypatch.setattr(hand_eye, name, value)
    # OpenCV's own need another OpenCV: the truth and a failure stand in for them
    monkeypatch.setattr(
        hand_eye,
        "opencv",
        lambda trials, fk, folder: [
            {"TRUTH": trial.T_base_camera, "NONE": np.full((4, 4), np.nan)} for trial in trials
        ],
    )
    found = figures_of(hand_eye.main, tmp_path, monkeypatch)
    good, bad = found["good_zeros"], found["bad_zeros"]
    assert good["opencv"]["TRUTH"]["median_mm"] < 1e-9 and good["opencv"]["NONE"]["median_mm"] is None
    assert good["best_opencv"] == "TRUTH"
    assert 3 < bad["best_opencv_median_mm"] < 40  # the true camera does not help an arm whose zeros are off
    for row in (good, bad):
        assert 0 < row["ours_median_mm"] <= row["ours_p95_mm"] < 5
        assert row["trials"] == 2 and 0 <= row["reported_within_two_share"] <= 1
    assert good["zeros_fitted_share"] == 0 and bad["zeros_fitted_share"] == bad["corrupted_found_share"] == 1
