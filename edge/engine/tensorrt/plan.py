"""Built engines on disk: where they lie, what each was built from and for, and whether it may run here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from drivers.errors import UserError
from edge.engine.bundle import MANIFEST, Bundle
from edge.engine.hashes import check_sha256, file_sha256
from edge.engine.tensorrt.layout import (
    FOLDER,
    HEAD,
    HEAD_NUMBERS,
    HEAD_ROWS,
    LANGUAGE,
    PREFILL_BLOCK,
    STEP_BLOCK,
)

ENGINES = "engines"


@dataclass(frozen=True)
class Target:
    """What an engine is built by and for.

    Attributes:
        module: ``tensorrt`` or ``tensorrt_rtx``.
        version: of the module; engines of another one do not load.
        capabilities: the GPU's compute capability, for example ``("8.7",)``; several only ahead of time.
        gpu: its name; None for an engine built ahead of time, which any GPU of those capabilities runs.
    """

    module: str
    version: str
    capabilities: tuple[str, ...]
    gpu: str | None

    def __str__(self) -> str:
        capabilities = " or ".join(self.capabilities)
        return f"{self.gpu or 'any GPU'} of compute capability {capabilities} by {self.module} {self.version}"

    @property
    def sm(self) -> list[str]:
        """The capabilities in NVIDIA's other spelling, ``SM87``."""
        return [f"SM{capability.replace('.', '')}" for capability in self.capabilities]

    @property
    def folder(self) -> str:
        """A file name of its own for each target."""
        gpu = "".join(c if c.isalnum() else "-" for c in self.gpu) if self.gpu else "any"
        return "-".join((self.module, self.version, *self.sm, gpu)).lower()

    def runs_on(self, here: Target) -> bool:
        """Whether an engine built for this target runs on the one GPU of the target `here`."""
        same = (self.module, self.version) == (here.module, here.version)
        return same and here.capabilities[0] in self.capabilities and self.gpu in (None, here.gpu)


@dataclass(frozen=True)
class Plan:
    """One engine file and what it is. Written as JSON beside the engine.

    Attributes:
        graph: file name of the graph it was built from.
        graph_sha256: hash over that graph's files and the sizes it was built for.
        precision: the bundle's quantization.
        target: what it was built by and for.
        engine_sha256, bytes: of the engine file.
        build_s: how long building it took.
    """

    graph: str
    graph_sha256: str
    precision: str
    target: Target
    engine_sha256: str = ""
    bytes: int = 0
    build_s: float = 0.0


def settings(bundle: Bundle) -> tuple[int, bool]:
    """Room of the cache in tokens, and whether the graphs compute in float16.

    Raises:
        UserError: the bundle has no graphs for TensorRT.
    """
    field = bundle.manifest.get("tensorrt")
    if not isinstance(field, dict):
        raise UserError(
            f"bundle {bundle.path / MANIFEST}: has no graphs for TensorRT (no field tensorrt); "
            "export it with --engine tensorrt or both"
        )
    room, float16 = field.get("room"), field.get("float16")
    if not isinstance(room, int) or isinstance(room, bool) or room < 1 or not isinstance(float16, bool):
        raise UserError(
            f"bundle {bundle.path / MANIFEST}: field tensorrt is {field}, expected a positive room and a float16 of "
            "true or false; export it again"
        )
    return room, float16


def graphs(bundle: Bundle) -> list[str]:
    """File names of the bundle's graphs for TensorRT, the largest first."""
    return [LANGUAGE, *(image.vision for image in bundle.images), HEAD, HEAD_NUMBERS]


def graph_path(bundle: Bundle, graph: str) -> Path:
    return bundle.path / FOLDER / graph


def _data_file(graph: str) -> str:
    return "vision.data" if graph.startswith("vision-") else f"{Path(graph).stem}.data"


def graph_bytes(bundle: Bundle, graph: str) -> int:
    """Of the graph and its weights."""
    return sum((bundle.path / FOLDER / name).stat().st_size for name in (graph, _data_file(graph)))


def planned(bundle: Bundle, graph: str, target: Target) -> Plan:
    """What the engine of `graph` for `target` must say of itself, before it is built.

    Raises:
        UserError: the manifest does not list the graph's files.
    """
    listed = bundle.manifest["files"]
    # Its optimization profiles are this version's: an engine with others takes no shapes of ours.
    lines = f"{PREFILL_BLOCK} {STEP_BLOCK} {HEAD_ROWS}\n"
    for name in (f"{FOLDER}/{graph}", f"{FOLDER}/{_data_file(graph)}"):
        if name not in listed:
            raise UserError(f"bundle {bundle.path / MANIFEST}: field files lacks {name}; export the bundle again")
        lines += f"{name} {listed[name]['sha256']}\n"
    return Plan(graph, hashlib.sha256(lines.encode()).hexdigest(), bundle.quantization, target)


def engine_path(bundle: Bundle, plan: Plan) -> Path:
    """Where the engine lies; its description is beside it with the suffix ``.json``."""
    return bundle.path / FOLDER / ENGINES / plan.target.folder / Path(plan.graph).with_suffix(".engine").name


def store(path: Path, plan: Plan, engine: Any, build_s: float) -> Plan:
    """Write an engine and its description, whole or not at all: the description comes last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    path.write_bytes(engine)
    done = replace(plan, engine_sha256=file_sha256(path), bytes=path.stat().st_size, build_s=round(build_s, 1))
    path.with_suffix(".json").write_text(json.dumps(asdict(done), indent=2) + "\n", encoding="utf-8")
    return done


def read(path: Path) -> Plan | None:
    """The description beside an engine file; None where there is none that can be read."""
    try:
        fields = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        target = fields["target"]
        target["capabilities"] = tuple(map(str, target["capabilities"]))
        return Plan(**{**fields, "target": Target(**target)})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def is_current(path: Path, plan: Plan) -> bool:
    """Whether `path` holds, undamaged, what `plan` asks for."""
    found = read(path)
    if found is None or not path.is_file() or path.stat().st_size != found.bytes:
        return False
    same = replace(plan, engine_sha256=found.engine_sha256, bytes=found.bytes, build_s=found.build_s) == found
    return same and check_sha256(path, found.engine_sha256)


def find_engine(bundle: Bundle, graph: str, here: Target) -> Path:
    """The engine of `graph` that runs `here`: built on this GPU, or else ahead of time for its compute capability.

    Raises:
        UserError: there is none; says of which GPU, version or export those are that were found.
    """
    again = f"run: vlar1 build {bundle.path}"
    folder, name = bundle.path / FOLDER / ENGINES, Path(graph).with_suffix(".engine").name
    described = [(path, plan) for path in sorted(folder.glob(f"*/{name}")) if (plan := read(path)) is not None]
    refusals = []
    for path, plan in sorted(described, key=lambda found: found[1].target.gpu is None):
        if not plan.target.runs_on(here):
            continue
        if is_current(path, planned(bundle, graph, plan.target)):
            return path
        other = plan.graph_sha256 != planned(bundle, graph, plan.target).graph_sha256
        refusals.append(
            f"engine {path}: {'was built from another export or version of vlar1' if other else 'is damaged'}; {again}"
        )
    if refusals:
        raise UserError(refusals[0])
    targets = ", ".join(f"for {plan.target}" for _, plan in described)
    raise UserError(
        f"engine {folder}/*/{name}: {f'built {targets}, not' if targets else 'not built'} for {here}; {again}"
    )
