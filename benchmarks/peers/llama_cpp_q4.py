"""llama.cpp through llama-cpp-python: Q4_0 throughout ("pure"), the vision tower in float16.

The converter is not in the wheel; it comes out of the source archive of the same version, from the package index.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.peers import workload
from edge import contract

PACKAGE = "llama_cpp_python"
LANGUAGE, VISION = "language-q4_0.gguf", "vision-f16.gguf"
CONTEXT = 1024


def prepare(checkpoint: Path, out: Path, variant: str) -> None:
    import llama_cpp

    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        wanted = f"{PACKAGE}=={importlib.metadata.version(PACKAGE)}"
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "-d", work)
        subprocess.run([*pip, wanted], check=True)
        with tarfile.open(next(Path(work).glob("*.tar.gz"))) as archive:
            archive.extractall(work, filter="data")
        source = next(Path(work).glob("*/vendor/llama.cpp"))
        out.mkdir(parents=True)
        whole = Path(work) / "language-bf16.gguf"
        convert = (sys.executable, str(source / "convert_hf_to_gguf.py"), str(checkpoint))
        environment = os.environ | {"PYTHONPATH": f"{source}:{source / 'gguf-py'}"}
        subprocess.run([*convert, "--outtype", "bf16", "--outfile", str(whole)], check=True, env=environment)
        options = ("--mmproj", "--outtype", "f16", "--outfile", str(out / VISION))
        subprocess.run([*convert, *options], check=True, env=environment)
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.pure, settings.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True, 2
        partial = out / (LANGUAGE + ".partial")
        if llama_cpp.llama_model_quantize(bytes(whole), bytes(partial), ctypes.byref(settings)):
            raise RuntimeError(f"llama.cpp cannot quantize {whole}")
        partial.rename(out / LANGUAGE)


def load(model: Path, threads: int) -> workload.Contender:
    import llama_cpp
    from llama_cpp import mtmd_cpp

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    weights = llama_cpp.llama_model_load_from_file(bytes(model / LANGUAGE), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = CONTEXT
    settings.n_threads = settings.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(weights, settings)
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(weights))
    vision_settings = mtmd_cpp.mtmd_context_params_default()
    vision_settings.use_gpu, vision_settings.print_timings, vision_settings.n_threads = False, False, threads
    vision = mtmd_cpp.mtmd_init_from_file(bytes(model / VISION), weights, vision_settings)
    if not (weights and context and vision):
        raise RuntimeError(f"llama.cpp cannot load {model}")

    def next_token() -> int:
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, (vocab,)).argmax())

    def decide(rgb: workload.Image, prompt: str, tokens: int) -> workload.Timing:
        pixels = (ctypes.c_uint8 * rgb.size).from_buffer_copy(rgb.tobytes())
        # mtmd puts Qwen's two vision tokens around the image itself.
        image = contract.VISION_START + contract.IMAGE_PAD + contract.VISION_END
        text = prompt.replace(image, mtmd_cpp.mtmd_default_marker().decode()).encode()
        start_s = time.perf_counter()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        bitmap = mtmd_cpp.mtmd_bitmap_init(rgb.shape[1], rgb.shape[0], pixels)
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        words = mtmd_cpp.mtmd_input_text(text, len(text), False, True)
        bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
        failed = mtmd_cpp.mtmd_tokenize(vision, chunks, ctypes.byref(words), bitmaps, 1)
        vision_s = time.perf_counter() - start_s
        past, n_prompt, n_image = llama_cpp.llama_pos(0), 0, 0
        n_chunks = mtmd_cpp.mtmd_input_chunks_size(chunks)
        for i in range(n_chunks):
            chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, i)
            size = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
            n_prompt += size
            if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                n_image += size
                encode_s = time.perf_counter()
                failed |= mtmd_cpp.mtmd_encode_chunk(vision, chunk)
                vision_s += time.perf_counter() - encode_s
                embeds = mtmd_cpp.mtmd_get_output_embd(vision)
                nothing = mtmd_cpp.mtmd_helper_post_decode_callback()
                failed |= mtmd_cpp.mtmd_helper_decode_image_chunk(
                    vision, context, chunk, embeds, past, 0, CONTEXT, ctypes.byref(past), nothing, None
                )
            else:
                last = i == n_chunks - 1
                failed |= mtmd_cpp.mtmd_helper_eval_chunk_single(
                    vision, context, chunk, past, 0, CONTEXT, last, ctypes.byref(past)
                )
        answer = [next_token()]
        first_s = time.perf_counter()
        for _ in range(tokens - 1):
            token = (llama_cpp.llama_token * 1)(answer[-1])
            failed |= llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(token, 1))
            answer.append(next_token())
        end_s = time.perf_counter()
        mtmd_cpp.mtmd_input_chunks_free(chunks)
        mtmd_cpp.mtmd_bitmap_free(bitmap)
        if failed:
            raise RuntimeError(f"llama.cpp: a step failed ({failed})")
        prefill_s = first_s - start_s - vision_s
        return workload.Timing(vision_s, prefill_s, end_s - first_s, n_prompt, n_image, len(answer))

    # The head is the token table, so a step reads the whole file.
    step_bytes = (model / LANGUAGE).stat().st_size
    return workload.Contender(decide, step_bytes, {"llama-cpp-python": llama_cpp.__version__})


if __name__ == "__main__":
    workload.main(load, prepare)
