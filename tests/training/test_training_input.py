"""What the training commands cannot use is said in one line, before any work."""

from pathlib import Path

import pytest

from edge import cli
from training.command import ALLOCATOR


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("data", "sim", "--out", "{tmp}/d", "--split", "train", "--count", "0"), "at least 1"),
        (("train", "base", "--data", "{tmp}/none.json", "--out", "{tmp}/run"), "none.json: cannot be read"),
        (("train", "base", "--data", "{tmp}/junk.json", "--out", "{tmp}/run"), "is not JSON"),
        (("train", "sft", "--model", "{tmp}", "--data", "{tmp}/junk.json", "--out", "{tmp}/run"), "lacks"),
        (("train", "grpo", "--model", "{tmp}", "--data", "{tmp}/j.json", "--out", "{tmp}/r", "--steps", "1"), "lacks"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: tuple[str, ...],
    says: str,
) -> None:
    for name, value in ALLOCATOR.items():  # as after the restart that sets them
        monkeypatch.setenv(name, value)
    (tmp_path / "junk.json").write_text("{")
    assert cli.main([part.format(tmp=tmp_path) for part in argv]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "d").exists()
