"""A prompt as the released VLA-R1 client writes it, to the task and the instruction in it."""

from __future__ import annotations

from drivers.errors import UserError
from edge import contract
from edge.contract import Task


def read_prompt(prompt: str, task: Task | None = None) -> tuple[Task, str]:
    """The task and the instruction; a task that the prompt's ending names goes before `task`.

    Raises:
        UserError: no task is named, or the instruction is unusable (`edge.contract.prompt_text`).
    """
    text = prompt.replace(contract.IMAGE_LITERAL, "").strip()
    named = next((t for t in contract.TASKS if text.endswith(contract.SUFFIX[t].strip())), task)
    if named is None:
        endings = " or ".join(f'"{contract.SUFFIX[t].strip()}"' for t in contract.TASKS)
        raise UserError(f"prompt: does not say what to answer with; end it with {endings}")
    contract.prompt_text(named, text)
    return named, text.removesuffix(contract.SUFFIX[named].strip()).strip()
