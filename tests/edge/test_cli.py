"""The vlar1 command: what it imports, what it prints, how it exits."""

import subprocess
import sys
import types
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from edge import cli

COMMAND = """
import sys
{top}

def register(subparsers):
    parser = subparsers.add_parser("{name}", help="registered by the module itself")
    parser.add_argument("--number", type=int, default=7)
    parser.set_defaults(func=run)

def run(args):
    {body}
"""


@pytest.fixture
def make_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a throw-away command, in a module of its own, beside a `heavy` one that must never be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "heavy_command.py").write_text("raise AssertionError('imported a command that was not asked for')")

    def make(body: str, top: str = "", name: str = "probe", module: str = "probe_command") -> None:
        path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(COMMAND.format(top=top, body=body, name=name))
        found = {
            "heavy": EntryPoint("heavy", "heavy_command:register", cli.GROUP),
            name: EntryPoint(name, f"{module}:register", cli.GROUP),
        }
        monkeypatch.setattr(cli, "commands", lambda: found)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return make


def test_runs_the_command_and_returns_its_code(make_command) -> None:
    make_command("return args.number")
    assert cli.main(["probe"]) == 7
    assert cli.main(["probe", "--number", "0"]) == 0


def test_help_names_all_commands_and_imports_none(make_command, capsys: pytest.CaptureFixture[str]) -> None:
    make_command("return 0", top="raise AssertionError('imported')")
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    assert "probe" in printed and "heavy" in printed


@pytest.mark.parametrize("argv", [[], ["no-such-command"], ["probe", "--no-such-option"]])
def test_wrong_arguments_exit_2(make_command, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    make_command("return 0")
    with pytest.raises(SystemExit) as exit_info:
        cli.main(argv)
    assert exit_info.value.code == 2
    assert "vlar1" in capsys.readouterr().err


def test_user_error_is_one_line_and_exit_2(make_command, capsys: pytest.CaptureFixture[str]) -> None:
    make_command(
        "raise DeviceError('/dev/ttyACM9: no such port;\\nplug the arm in')",
        top="from drivers.errors import DeviceError",
    )
    assert cli.main(["probe"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "vlar1: error: /dev/ttyACM9: no such port; plug the arm in\n"
    assert captured.out == ""


def test_a_file_the_system_refuses_is_one_line_and_exit_2(make_command, capsys: pytest.CaptureFixture[str]) -> None:
    make_command("open('/no/such/folder/file', 'w')")
    assert cli.main(["probe"]) == 2
    assert capsys.readouterr().err == "vlar1: error: /no/such/folder/file: No such file or directory\n"


def test_missing_package_is_one_line_and_exit_2(make_command, capsys: pytest.CaptureFixture[str]) -> None:
    make_command("import a_package_nobody_has.nn")
    assert cli.main(["probe"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "a_package_nobody_has" in error and "pip install 'vlar1-edge'" in error


@pytest.mark.parametrize("room", ["export", "training"])
def test_missing_package_of_a_room_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], room: str
) -> None:
    def register(subparsers: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    module = types.ModuleType(f"{room}.probe")
    module.register = register  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "commands", lambda: {"probe": EntryPoint("probe", f"{room}.probe:register", cli.GROUP)})
    assert cli.main(["probe"]) == 2
    error = capsys.readouterr().err
    assert "torch" in error and f"pip install 'vlar1-edge[{room}]'" in error


def test_a_module_of_ours_that_is_missing_is_a_bug(make_command) -> None:
    make_command("import edge.no_such_module")
    with pytest.raises(ModuleNotFoundError):
        cli.main(["probe"])


def test_interrupt_exits_130_after_the_cleanup(make_command, capsys: pytest.CaptureFixture[str]) -> None:
    make_command("""try:
        raise KeyboardInterrupt
    finally:
        print("parked")""")
    assert cli.main(["probe"]) == 130
    captured = capsys.readouterr()
    assert captured.out == "parked\n"
    assert captured.err == "vlar1: interrupted\n"


def run_in_a_shell(tmp_path: Path, body: str) -> subprocess.Popen[bytes]:
    (tmp_path / "probe_command.py").write_text(COMMAND.format(top="", body=body, name="probe"))
    script = (
        "import sys; from importlib.metadata import EntryPoint; from edge import cli;"
        f"sys.path.insert(0, {str(tmp_path)!r});"
        "cli.commands = lambda: {'probe': EntryPoint('probe', 'probe_command:register', cli.GROUP)};"
        "sys.exit(cli.main(['probe']))"
    )
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    process = run_in_a_shell(tmp_path, "[print('line', i) for i in range(100_000)]; return 0")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert error == b""


def test_a_broken_pipe_that_is_not_stdout_is_not_hidden(tmp_path: Path) -> None:
    out, error = run_in_a_shell(tmp_path, "raise BrokenPipeError('to the simulator')").communicate()
    assert b"BrokenPipeError: to the simulator" in error


def test_installed_commands_are_found_without_importing_torch() -> None:
    assert {"demo", "ask", "export"} <= {entry.name for entry in entry_points(group=cli.GROUP)}
    script = (
        "import sys; from edge import cli\n"
        "try: cli.main(['--help'])\n"
        "finally: assert not {'torch', 'transformers', 'onnxruntime', 'mujoco'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in cli.commands())
    assert all(cli.DESCRIPTIONS[name][:20] in done.stdout for name in ("demo", "ask", "export"))
