import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from emu_edit.training.loggers import (
    REDACTED,
    WandbLogger,
    flat,
    git_revision,
    is_secret,
    redact,
    wandb_mode,
)

CANARIES = ("canary-one", "canary-two", "canary-three", "canary-four")


@pytest.fixture(autouse=True)
def no_run_is_left():
    """A run that a test leaves open would be taken up by the next one that logs."""
    yield
    wandb.finish()


@pytest.fixture
def nobody_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty home folder: no key, no netrc, no settings of W&B."""
    home = tmp_path / "home"
    home.mkdir()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(home / "wandb-config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(home / "wandb-cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(home / "wandb-data"))
    monkeypatch.delenv("NETRC_FILE", raising=False)
    return home


@pytest.mark.parametrize(
    "key",
    [
        "token",
        "hf_token",
        "api_key",
        "apiKey",
        "API-KEY",
        "password",
        "db.password",
        "client_secret",
        "credentials",
        *("passwd", "db_pwd", "auth", "private_key", "accessKey", "X-Amz-Signature"),
    ],
)
def test_keys_that_name_a_secret_are_recognised(key):
    assert is_secret(key)


@pytest.mark.parametrize(
    "key", ["tokenizer", "num_tokens", "max_tokens", "secretary", "task_to_tokens", "keys", "api"]
)
def test_words_that_only_contain_a_secret_word_stay_readable(key):
    assert not is_secret(key)


def test_redaction_reaches_nested_values_and_addresses_and_keeps_the_rest():
    config = {
        "data": {"url": "https://me:hunter2@host/x", "token": "abc", "num_tokens": 77},
        "list": [{"password": "p"}, 1.5, None],
        "token": None,
    }
    assert redact(config) == {
        "data": {"url": f"https://{REDACTED}@host/x", "token": REDACTED, "num_tokens": 77},
        "list": [{"password": REDACTED}, 1.5, None],
        "token": None,
    }


def test_the_query_of_an_address_is_hidden_and_its_path_is_not():
    signed = "https://data.example.org/edits/train?sig=abc%2F&sv=2#part"
    assert redact({"train": signed}) == {"train": "https://data.example.org/edits/train?***#part"}
    assert redact("what is 2 ? 3") == "what is 2 ? 3"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:p@ss@host/x", "https://***@host/x"),
        ("s3://AKIA12:se/cr+et@bucket/train", "s3://***@bucket/train"),
        ("s3://KEY:SECRET@bucket", "s3://***@bucket"),
        ("https://token@host:8080/x", "https://***@host:8080/x"),
    ],
)
def test_logins_in_addresses_are_hidden_whole(address, shown):
    assert redact({"train": address}) == {"train": shown}


@pytest.mark.parametrize("address", ["https://host/a@b and me@host", "http://host:8080/a@b"])
def test_an_address_without_credentials_is_kept(address):
    assert redact(f"see {address}") == f"see {address}"


def test_a_config_becomes_flat_by_the_names_of_options_and_a_list_of_parts_by_class():
    ema = {"class_path": "callbacks.ema.Ema", "init_args": {"decay": 0.9}}
    config = {
        "seed": 1,
        "model": {"class_path": "a.M", "init_args": {"optimizer": {"lr": 0.1}, "sizes": [1, 2]}},
        "trainer": {"callbacks": [ema, ema, {"class_path": "x.Stop"}], "logger": False},
    }
    assert flat(config) == {
        "seed": 1,
        "model.class_path": "a.M",
        "model.optimizer.lr": 0.1,
        "model.sizes": [1, 2],
        "trainer.callbacks.Ema.class_path": "callbacks.ema.Ema",
        "trainer.callbacks.Ema.decay": 0.9,
        "trainer.callbacks.Ema-2.class_path": "callbacks.ema.Ema",
        "trainer.callbacks.Ema-2.decay": 0.9,
        "trainer.callbacks.Stop.class_path": "x.Stop",
        "trainer.logger": False,
    }


@pytest.mark.usefixtures("nobody_home")
def test_without_a_key_wandb_is_offline():
    assert wandb_mode() == "offline"


@pytest.mark.usefixtures("nobody_home")
@pytest.mark.parametrize(
    ("value", "mode"),
    [("disabled", "disabled"), ("offline", "offline"), ("dryrun", "offline"), ("online", "online")],
)
def test_the_users_wandb_mode_wins(monkeypatch, value, mode):
    monkeypatch.setenv("WANDB_MODE", value)
    assert wandb_mode() == mode


def test_a_key_in_netrc_means_online(nobody_home):
    (nobody_home / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert wandb_mode() == "online"


@pytest.mark.usefixtures("nobody_home")
def test_a_key_in_the_environment_means_online(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_mode() == "online"


def test_the_git_revision_is_the_commit_and_says_when_files_differ(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    assert git_revision(tmp_path) == "unknown"
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "a")
    commit = git("rev-parse", "HEAD")
    assert git_revision(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert git_revision(tmp_path) == f"{commit}+changes"


def test_an_offline_run_holds_metrics_and_config_but_no_secret(
    nobody_home, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr("sys.stdin", None)  # a prompt would fail at once
    monkeypatch.setattr("sys.argv", ["emu-edit", "fit", f"--token={CANARIES[0]}"])
    folder = tmp_path / "run"
    logger = WandbLogger(save_dir=str(folder))
    logger.log_hyperparams({
        "api_key": CANARIES[1],
        "url": f"s3://user:{CANARIES[2]}@bucket",
        "lr": 0.125,
        "note": "plain-note",
    })
    logger.log_metrics({"loss": 1.0}, step=1)
    os.write(1, f"{CANARIES[3]}\n".encode())
    logger.experiment.finish()
    logger.finalize("success")

    files = [path for path in (*folder.rglob("*"), *nobody_home.rglob("*")) if path.is_file()]
    content = b"".join(path.read_bytes() for path in files)
    assert [canary for canary in CANARIES if canary.encode() in content] == []
    assert b"plain-note" in content
    assert b"git_revision" in content
    (run,) = (folder / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    assert "wandb: (1)" not in "".join(capfd.readouterr())  # the first line of its question


@pytest.mark.usefixtures("nobody_home")
def test_a_disabled_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = WandbLogger(save_dir=str(tmp_path / "run"))
    logger.log_hyperparams({"lr": json.loads("0.5")})
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == []


# in a process of its own: W&B's library has one connection for all runs of a process
LOSING = """
import logging, os, signal, sys
from pathlib import Path
from emu_edit.training.loggers import WandbLogger, ending_wandb_run

logging.basicConfig(format="%(message)s")
with ending_wandb_run():
    logger = WandbLogger(save_dir=sys.argv[1])
    logger.log_metrics({"loss": 1.0}, 1)
    tasks = [task / "children" for task in Path("/proc/self/task").iterdir()]
    children = [child for task in tasks for child in task.read_text().split()]
    (core,) = [int(c) for c in children if b"wandb-core" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(core, signal.SIGKILL)
    os.waitpid(core, 0)
    for step in range(2, 5) if sys.argv[2] == "training" else ():
        logger.log_metrics({"loss": 1.0}, step)
    print("trained")
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find a child")
@pytest.mark.parametrize("moment", ["training", "the end"])
def test_training_goes_on_when_the_process_of_wandb_dies(tmp_path, moment):
    # another one's process would be its parent's child
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    own["PYTHONPATH"] = str(Path(__file__).parents[2])  # wherever the tests are
    done = subprocess.run(
        [sys.executable, "-c", LOSING, str(tmp_path), moment],
        env=own,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
    assert done.stderr.count("Weights & Biases stopped (") == 1
    assert f"what it got until here is in {tmp_path}/wandb/offline-run-" in done.stderr
    assert "Traceback" not in done.stderr
