"""What the training commands cannot use is said in one line, before any work."""

from pathlib import Path

import pytest

from edge import cli
from training.scenes import load_shard, make_scenes


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("data", "sim", "--out", "{tmp}/d", "--count", "0"), "at least 1"),
        (("data", "sim", "--out", "{tmp}/d", "--count", "1", "--seed", "-1"), "--seed -1"),
        (("eval", "--bundle", "{bundle}", "--data", "{tmp}/none"), "no scenes"),
        (("eval", "--bundle", "{bundle}", "--data", "{tmp}"), "is damaged or holds no scenes"),
        (("eval", "--bundle", "{bundle}", "--data", "{tmp}", "--count", "-1"), "--count -1"),
        (("eval", "--bundle", "{bundle}", "--data", "{tmp}", "--json", "{tmp}/no/f.json"), "folder does not exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], says: str
) -> None:
    (tmp_path / "scenes-00000001.npz").write_bytes(b"junk")
    assert cli.main([part.format(tmp=tmp_path, bundle=tiny_bundle) for part in argv]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "d").exists()


def test_a_shard_that_was_cut_short_by_a_smaller_count_is_made_again(tmp_path: Path) -> None:
    assert list(make_scenes(tmp_path, 1, seed=3, workers=1)) == [1]
    (path,) = tmp_path.glob("*.npz")
    first = load_shard(path)[0][0]
    assert list(make_scenes(tmp_path, 2, seed=3, workers=1)) == [2]
    rgb, _, seen = load_shard(path)
    assert len(seen) == 2 and (rgb[0] == first).all()
