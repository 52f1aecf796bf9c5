import errno

import pytest

from emu_edit.cli import main as program
from emu_edit.cli.main import describe, main
from emu_edit.errors import InputError
from emu_edit.runs.failures import one_line

KNOWN = ["config", "trainer.max_epochs", "model", "data"]


def raising(error: BaseException):
    def dispatch(_: list[str]) -> int:
        raise error

    return dispatch


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), "a/b: No such file"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "/root/x: Permission den"),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot write: No space left on dev"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "/x: Read-only file system"),
    ],
)
def test_an_error_of_the_disk_is_one_line(
    error: OSError,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(program, "dispatch", raising(error))
    assert main([]) == 2
    assert capsys.readouterr().err.startswith(f"emu-edit: error: {line}")


def test_an_os_error_nobody_can_act_on_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "dispatch", raising(OSError("a defect")))
    with pytest.raises(OSError, match="a defect"):
        main([])


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "dispatch", raising(ValueError("a defect")))
    with pytest.raises(ValueError, match="a defect"):
        main([])


def test_ctrl_c_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "dispatch", raising(KeyboardInterrupt()))
    assert main([]) == 130
    assert capsys.readouterr().err == ""


def test_a_message_of_many_lines_becomes_one() -> None:
    assert describe(InputError("first\n  second")) == "first second"


def test_the_innermost_reason_of_a_config_error_is_kept_with_the_nearest_key() -> None:
    message = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'LightningModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'emu_edit.training.module.EditModule':
        Option 'predicton' is not accepted
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
"""
    assert one_line(message, KNOWN) == (
        "model: Option 'predicton' is not accepted (in emu_edit.training.module.EditModule). "
        "Did you mean 'prediction'? See --help-all or --print_config"
    )


def test_a_value_of_the_wrong_kind_is_said_with_what_was_expected() -> None:
    message = """Parser key "trainer.max_epochs":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'int'>, <class 'NoneType'>]
  Errors:
    - Expected a <class 'int'>
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: many
"""
    assert one_line(message, KNOWN) == (
        "trainer.max_epochs: Expected a int, Given value: many. See --help-all or --print_config"
    )
