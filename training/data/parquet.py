"""Items as Parquet rows in the layout of the released trainer (verl), and back.

A row is ``{data_source, prompt: [{role, content}], images: [{image}], reward_model: {style, ground_truth}}``
(GigaAI-research/VLA-R1, RFT_training/train_utils/sharegpt_to_parquet.py). What else an item carries goes into
``extra_info`` as JSON text, a column that verl hands to the reward function and otherwise leaves alone; it is written
only where some item carries something.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drivers.errors import UserError
from training.data.sharegpt import Bad, Item, from_json, to_json

DATA_SOURCE = "custom/vla_r1"


def to_row(item: Item) -> dict[str, Any]:
    """One row; ``data_source`` among the item's other keys also fills the column of that name."""
    human, gpt = (turn["value"] for turn in to_json(item)["conversations"])
    return {
        "data_source": str(item.more.get("data_source", DATA_SOURCE)),
        "prompt": [{"role": "user", "content": human}],
        "images": [{"image": item.image}],
        "reward_model": {"style": "rule", "ground_truth": gpt},
        "extra_info": {"more": json.dumps(item.more)},
    }


def from_row(row: dict[str, Any]) -> Item:
    """The item of one row. Raises ValueError with the reason where the row stands for none."""
    try:
        asked = [turn["content"] for turn in row["prompt"] if turn["role"] == "user"]
        images = [entry["image"] for entry in row["images"]]
        said = row["reward_model"]["ground_truth"]
    except (KeyError, TypeError):
        raise ValueError("the row lacks prompt, images or reward_model as the released trainer writes them") from None
    if not asked:
        raise ValueError("prompt: has no user turn")
    turns = [{"from": "human", "value": asked[0]}, {"from": "gpt", "value": said}]
    extra = row.get("extra_info")
    text = extra.get("more") if isinstance(extra, dict) else None
    more = json.loads(text) if isinstance(text, str) else {}
    if not isinstance(more, dict):
        raise ValueError("extra_info: more is not a JSON object")
    source = row.get("data_source")
    if isinstance(source, str) and source != DATA_SOURCE:
        more.setdefault("data_source", source)
    return from_json({**more, "image": images, "conversations": turns})


def write_parquet(path: Path, items: Sequence[Item]) -> None:
    """Write all items as one Parquet file, complete or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    columns = {
        "data_source": text,
        "prompt": pa.list_(pa.struct({"role": text, "content": text})),
        "images": pa.list_(pa.struct({"image": text})),
        "reward_model": pa.struct({"style": text, "ground_truth": text}),
    }
    if any(item.more for item in items):
        columns["extra_info"] = pa.struct({"more": text})
    rows = [{key: value for key, value in to_row(item).items() if key in columns} for item in items]
    partial = path.with_name(path.name + ".partial")
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(columns)), partial)
    partial.replace(path)


def read_parquet(path: Path) -> tuple[list[tuple[int, Item]], list[Bad]]:
    """The items with their row numbers, and the rows that are none.

    Raises:
        UserError: the file is missing or no Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except OSError as error:
        why = error.strerror or str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be read ({why}); expected a Parquet file") from None
    except pa.ArrowException as error:
        raise UserError(f"{path}: is no Parquet file ({str(error).partition(chr(10))[0]})") from None
    items, bad = [], []
    for index, row in enumerate(rows):
        try:
            items.append((index, from_row(row)))
        except ValueError as error:
            bad.append(Bad(index, str(error)))
    return items, bad
