"""The run's video: what a decoder reads back of it, and that a process of its own makes it."""

from pathlib import Path

import av
import mujoco
import numpy as np

from drivers.sim.scene import Scene, draw_look
from drivers.sim.server import State
from drivers.sim.world import build_model
from edge.film import FPS, Cinema, VideoWriter, compose


def read_back(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == FPS
        return [f.to_ndarray(format="rgb24") for f in container.decode(stream)]


def test_a_video_comes_back_with_every_frame(tmp_path: Path) -> None:
    frames = [np.full((64, 96, 3), 20 * k, np.uint8) for k in range(12)]
    writer = VideoWriter(tmp_path / "run.mp4")
    for frame in frames:
        writer.write(frame)
    writer.close()
    decoded = read_back(tmp_path / "run.mp4")
    assert len(decoded) == len(frames)
    assert all(abs(float(d.mean()) - float(f.mean())) < 4 for d, f in zip(decoded, frames, strict=True))
    assert [p.name for p in tmp_path.iterdir()] == ["run.mp4"]


def test_a_run_without_episodes_leaves_no_video(tmp_path: Path) -> None:
    VideoWriter(tmp_path / "run.mp4").close()
    assert not list(tmp_path.iterdir())


def test_the_verdict_frames_the_picture() -> None:
    view, decision = np.zeros((360, 480, 3), np.uint8), np.zeros((480, 960, 3), np.uint8)
    good, bad, open_ = (compose(view, decision, "1/1", v) for v in (True, False, None))
    assert good.shape[0] % 2 == 0 and good.shape[1] % 2 == 0
    assert good[1, 100].argmax() == 1 and bad[1, 100].argmax() == 0 and not open_[1, 100].any()


def test_the_cinema_films_recorded_states(tmp_path: Path) -> None:
    scene = Scene((), draw_look(np.random.default_rng(0)))
    qpos = mujoco.MjData(build_model(scene)).qpos
    with Cinema(tmp_path / "run.mp4") as cinema:
        cinema.add(scene, [State(0.1 * k, qpos) for k in range(3)], np.zeros((480, 960, 3), np.uint8), "1/1", True)
    assert len(read_back(tmp_path / "run.mp4")) == 3
