"""The API of the released VLA-R1 server, for its clients: a prompt and an image to the answer's text."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, Form, Request, UploadFile
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from drivers.errors import UserError
from edge.serve.asked import reply_to, uploaded
from edge.serve.folder import read_allowed
from edge.serve.guard import MAX_BODY_BYTES
from edge.serve.image import check_image
from edge.serve.line import Line, Question
from edge.serve.prompt import read_prompt


class Generate(BaseModel):
    """A prompt and an image file on the server's disk."""

    prompt: str
    image_path: str | None = None


class Generated(BaseModel):
    """The answer's text: ``<think>…</think><output>…</output>``."""

    result: str


class Health(BaseModel):
    """The server answers."""

    ok: bool


def router(line: Line, images: Path | None) -> APIRouter:
    """Its three paths; `images` is the folder that ``image_path`` may name files of, None for no file at all."""
    api = APIRouter()

    @api.get("/health")
    async def health() -> Health:
        return Health(ok=True)

    @api.post("/generate_multipart")
    async def generate_multipart(
        request: Request, prompt: Annotated[str, Form()], image: Annotated[UploadFile | None, File()] = None
    ) -> Generated:
        task, instruction = read_prompt(prompt)
        reply = await reply_to(request, line, Question(await uploaded(image), task, instruction))
        return Generated(result=reply.decision.text)

    @api.post("/generate")
    async def generate(request: Request, body: Generate) -> Generated:
        task, instruction = read_prompt(body.prompt)
        if not body.image_path:
            raise UserError("image_path: is missing; this model answers about an image")
        if images is None:
            raise HTTPException(
                403, "image_path: no file is read, for want of --images FOLDER; send the image to /generate_multipart"
            )
        content = await asyncio.to_thread(read_allowed, images, body.image_path, MAX_BODY_BYTES)
        if content is None:
            raise UserError("image_path: no such image in the folder that --images allows")
        check_image(content)
        reply = await reply_to(request, line, Question(content, task, instruction))
        return Generated(result=reply.decision.text)

    return api
