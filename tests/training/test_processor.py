"""The processor gives the robot's prompt and the reference's pixels, however it is asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLImageProcessor

from drivers.errors import UserError
from edge.contract import TASKS, prompt_text, render_chat
from training.processor import ImageTextProcessor, load_processor

LIMITS = {"min_pixels": 56 * 56, "max_pixels": 112 * 112}


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("processor") / "checkpoint"
    shutil.copytree(tiny_checkpoint, out)
    text = json.dumps({"image_processor_type": "Qwen2VLImageProcessor", **LIMITS})
    (out / "preprocessor_config.json").write_text(text)
    return out


@pytest.fixture(scope="module")
def processor(folder: Path) -> ImageTextProcessor:
    return load_processor(folder)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def patches(image: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Transformers' patches at a size in patches; Pillow resizes across, then down, as it did before version 13."""
    height, width = (14 * grid[1:]).tolist()
    across = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BICUBIC)
    resized = across.resize((width, height), Image.Resampling.BICUBIC)
    return Qwen2VLImageProcessor(do_resize=False)(resized, return_tensors="np")["pixel_values"]


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(20, 200), st.integers(20, 200)), min_size=1, max_size=3))
def test_equals_the_contract_and_the_reference(
    folder: Path, processor: ImageTextProcessor, sizes: list[tuple[int, int]]
) -> None:
    images = [picture(*size, seed=k) for k, size in enumerate(sizes)]
    texts = [render_chat(prompt_text(TASKS[k % 2], "pick up the cube")) for k in range(len(images))]
    got = processor(images=[[image] for image in images], text=texts)

    reference = Qwen2VLImageProcessor(**LIMITS)(images, return_tensors="np")
    np.testing.assert_array_equal(got["image_grid_thw"], reference["image_grid_thw"])
    grids = reference["image_grid_thw"]
    expected = [patches(image, grid) for image, grid in zip(images, grids, strict=True)]
    np.testing.assert_array_equal(got["pixel_values"], np.concatenate(expected))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for k, grid in enumerate(grids):
        chat = render_chat(prompt_text(TASKS[k % 2], "pick up the cube"), int(grid.prod()) // 4)
        assert got["input_ids"][k] == tokenizer.encode(chat)


def test_chat_template_puts_the_image_where_the_content_has_it(processor: ImageTextProcessor) -> None:
    text = prompt_text("affordance", "take the red cube")
    content = [{"type": "text", "text": text}, {"type": "image", "image": Image.fromarray(picture(56, 56))}]
    messages = [{"role": "user", "content": content}]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == render_chat(text)
    got = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert got["input_ids"] == [processor.tokenizer.encode(render_chat(text, 4))]


def test_a_saved_processor_is_the_same(processor: ImageTextProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = load_processor(tmp_path)
    asked = {"images": [picture(100, 60)], "text": [render_chat("x\n")]}
    a, b = processor(**asked), again(**asked)
    assert a["input_ids"] == b["input_ids"]
    np.testing.assert_array_equal(a["pixel_values"], b["pixel_values"])
    assert again.chat_template == processor.chat_template
    reference = Qwen2VLImageProcessor.from_pretrained(tmp_path)
    assert (reference.min_pixels, reference.max_pixels) == (LIMITS["min_pixels"], LIMITS["max_pixels"])


@pytest.mark.parametrize("text", [["no placeholder"], [render_chat("x\n") * 2]])
def test_placeholders_and_images_must_match(processor: ImageTextProcessor, text: list[str]) -> None:
    with pytest.raises(ValueError, match="placeholders for 1 images"):
        processor(images=[picture(56, 56)], text=text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "lacks preprocessor_config.json"),
        ("{", "is no image processor's settings"),
        ("[1]", "is no image processor's settings"),
        ('{"patch_size": 16}', "patch_size is 16"),
        ('{"image_mean": [0.5, 0.5, 0.5]}', "image_mean is"),
    ],
)
def test_a_folder_without_usable_image_settings(folder: Path, tmp_path: Path, content: str | None, said: str) -> None:
    out = tmp_path / "checkpoint"
    shutil.copytree(folder, out)
    (out / "preprocessor_config.json").unlink()
    if content is not None:
        (out / "preprocessor_config.json").write_text(content)
    with pytest.raises(UserError, match=said):
        load_processor(out)


def test_a_folder_without_tokenizer(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "preprocessor_config.json", tmp_path)
    with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
        load_processor(tmp_path)


def test_saving_leaves_no_trace_of_the_last_batch(processor: ImageTextProcessor, folder: Path, tmp_path: Path) -> None:
    processor(text=["a longer text", "a"], padding=True, padding_side="left", return_tensors="pt")
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved == json.loads((folder / "tokenizer.json").read_text())
