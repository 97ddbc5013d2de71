"""What all commands of `vlar1 arm` have in common."""

import pytest

from edge import cli

COMMANDS = ("scan", "setup", "calibrate", "monitor", "park", "jog")


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["arm", "--help"])
    assert left.value.code == 0
    told = capsys.readouterr().out
    assert all(f"    {name}" in told for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_a_robot_file_and_a_port(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["arm", command, "--help"])
    told = capsys.readouterr().out
    assert "--robot FILE" in told and "--port P" in told

    more = ["--out", "a.json"] if command == "calibrate" else ["--yes"] if command == "park" else []
    if command == "jog":
        return  # asks for a keyboard first
    assert cli.main(["arm", command, "--robot", "nowhere.yaml", *more]) == 2
    error = capsys.readouterr().err
    assert error == "vlar1: error: robot file nowhere.yaml: No such file or directory; name an existing robot file\n"


def test_calibrate_records_or_restores(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--out", "a.json", "--from", "b.json"]):
        with pytest.raises(SystemExit) as left:
            cli.main(["arm", "calibrate", *arguments])
        assert left.value.code == 2
    assert "not allowed with argument --out" in capsys.readouterr().err
