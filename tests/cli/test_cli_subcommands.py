import pytest

from emu_edit.cli import edit, evaluate
from emu_edit.cli.arguments import Command, run_command
from emu_edit.errors import InputError

HEARD: list[list[str]] = []


def hear(arguments: list[str]) -> int:
    HEARD.append(arguments)
    return 65


COMMANDS = {
    "world": Command(hear, "write pairs"),
    "check": Command(lambda _: 0, "read every byte"),
}


def test_a_command_gets_the_arguments_after_its_name_and_gives_the_status() -> None:
    assert run_command("shards", COMMANDS, ["world", "w", "--help"]) == 65
    assert HEARD == [["w", "--help"]]
    assert run_command("shards", COMMANDS, ["check"]) == 0


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
@pytest.mark.parametrize("about", ["", "Of data."])
def test_without_a_command_the_help_names_them_all(
    arguments: list[str], about: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("shards", COMMANDS, arguments, about=about) == 0
    assert capsys.readouterr().out == (
        "usage: emu-edit shards COMMAND [ARGUMENTS]\n\n"
        + (f"{about}\n\n" if about else "")
        + "  world     write pairs\n  check     read every byte\n\n"
        "emu-edit shards COMMAND --help tells more.\n"
    )


def test_an_unknown_command_is_refused_with_the_nearest() -> None:
    words = r"^unknown command 'shards wrold'; known: world, check\. Did you mean 'world'\?$"
    with pytest.raises(InputError, match=words):
        run_command("shards", COMMANDS, ["wrold"])


def test_edit_and_evaluate_take_the_same_sampling_options() -> None:
    asked = ["--steps=3", "--guidance-text=2", "--guidance-image=1.5", "--sampler=ddim"]
    for parser, needed in ((edit.parser(), ["a.png", "-o", "b.png"]), (evaluate.parser(), ["m"])):
        told, usual = parser.parse([*needed, *asked]), parser.parse(needed)
        names = ("steps", "guidance_text", "guidance_image", "sampler")
        assert [getattr(told, name) for name in names] == [3, 2.0, 1.5, "ddim"]
        assert [getattr(usual, name) for name in names] == [None] * 4
