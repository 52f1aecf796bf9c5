"""The Weights & Biases logger: offline when nobody is logged in, and no secret is stored.

W&B would keep the command line, the console and the code; all three may hold secrets and are
switched off. What a reader of the run needs instead, the resolved config and the git revision, is
written by us, with secrets replaced.
"""

import logging
import netrc
import os
import re
import subprocess
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import wandb
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from wandb.errors import CommError

KEY_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
SAME_SERVER = {
    "api.forge.coreweave.com": "api.wandb.ai"
}  # wandb 0.31 accepts a key of the old name
REDACTED = "***"
# whole words, so that tokenizer, num_tokens and max_tokens stay readable
SECRET_WORDS = {"token", "secret", "password", "apikey", "credential", "credentials"}
URL_CREDENTIALS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)
URL_QUERY = re.compile(r"(?P<address>[a-z][a-z0-9+.-]*://[^\s?#]*)\?[^\s#]+", re.IGNORECASE)

log = logging.getLogger(__name__)
_lost: set[str] = set()  # runs of this process whose W&B process has ended


def redact(value: object, key: str = "") -> object:
    """Replace secrets in a config: values of keys that name one, logins and queries in addresses.

    `key` is the name `value` is found under; camel case counts as words. Containers come back as
    dicts and lists, numbers and None as they are.
    """
    if value is not None and is_secret(key):
        return REDACTED
    match value:
        case Mapping():
            return {name: redact(entry, str(name)) for name, entry in value.items()}
        case list() | tuple() | set():
            return [redact(entry) for entry in value]
        case str():
            shown = URL_CREDENTIALS.sub(rf"\g<scheme>{REDACTED}@", value)
            return URL_QUERY.sub(rf"\g<address>?{REDACTED}", shown)
        case _:
            return value


def is_secret(key: str) -> bool:
    """Tell whether a key names a secret: token, secret, password, api_key, credential.

    Whole words only, in snake, kebab or camel case.
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", key)
    words = re.findall(r"[a-z0-9]+", spaced.lower())
    pairs = [first + second for first, second in pairwise(words)]
    return not SECRET_WORDS.isdisjoint(words + pairs)


def git_revision(folder: Path) -> str:
    """Return the commit checked out at `folder`, "+changes" when files differ, or "unknown"."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if changes else commit


def wandb_mode() -> Literal["online", "offline", "disabled"]:
    """Return how W&B will run: as `WANDB_MODE` says, else online if there is an API key.

    A key is looked for where W&B looks: the environment, W&B's settings files, and the netrc file.
    """
    match os.environ.get("WANDB_MODE", ""):
        case "online" | "offline" | "disabled" as mode:
            return mode
        case "dryrun":  # W&B's older word
            return "offline"
    if any(os.environ.get(name) for name in KEY_VARIABLES):
        return "online"
    settings = wandb.setup().settings
    host = urlsplit(str(settings.base_url)).netloc
    return (
        "online"
        if settings.api_key or _netrc_has({host, SAME_SERVER.get(host, host)})
        else "offline"
    )


class WandbLogger(LightningWandbLogger):
    """Log to Weights & Biases, into the run's folder.

    Offline runs are stored in `save_dir/wandb` and can be sent later with `wandb sync`.

    Args:
        project: name of the W&B project.
        save_dir: the run's folder.
        name: name of the run; none lets W&B invent one.
        id: identity of the run; the same one continues it.
        tags: labels to find the run by.
    """

    def __init__(
        self,
        project: str = "emu-edit",
        save_dir: str = "runs",
        name: str | None = None,
        id: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        super().__init__(
            project=project,
            save_dir=save_dir,
            name=name,
            id=id,
            tags=tags,
            mode=wandb_mode(),
            settings=wandb.Settings(
                console="off",
                save_code=False,
                # command line, host and user names, and git remotes, whose addresses may hold
                # passwords
                x_disable_meta=True,
                x_save_requirements=False,
                disable_git=True,
                silent=True,
            ),
            config={"git_revision": git_revision(Path(__file__).parent)},
        )
        # Lightning always passes it; W&B has dropped it and warns about it at every start
        self._wandb_init.pop("anonymous", None)

    @property
    def experiment(self) -> Any:
        """Return W&B's run; an offline one when its server does not answer or refuses."""
        try:
            return super().experiment
        except CommError as error:
            log.warning(
                "Weights & Biases cannot be used (%s); training goes on, offline: the run is kept "
                "in %s, `wandb sync` sends it later",
                redact(" ".join(str(error).split())),
                Path(self._wandb_init["dir"], "wandb"),
            )
            self._wandb_init["mode"] = "offline"
            return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers or pictures; nothing any more when W&B's process has ended."""
        if _is_lost():
            return
        try:
            super().log_metrics(metrics, step)
        except ConnectionError as error:
            _lose(error)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping | Namespace) -> None:
        """Store a config in the run, secrets replaced."""
        given = vars(params) if isinstance(params, Namespace) else params
        super().log_hyperparams({name: redact(value, name) for name, value in given.items()})


@contextmanager
def ending_wandb_run() -> Iterator[None]:
    """End this process's W&B run on the way out, marked as failed when an exception passes.

    Lightning ends it only after a training that went through. A run whose W&B process has ended
    cannot be ended, and is left as it is.
    """
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        if wandb.run is not None and not _is_lost():
            try:
                wandb.finish(exit_code=exit_code)
            except ConnectionError as error:
                _lose(error)


def _is_lost() -> bool:
    return wandb.run is not None and wandb.run.id in _lost


def _lose(error: ConnectionError) -> None:
    """Say that W&B's process, which its own library starts, is no longer there, and let it go."""
    if wandb.run is None:
        raise error
    _lost.add(wandb.run.id)
    log.warning(
        "Weights & Biases stopped (%s); training goes on without it: what it got until here is in "
        "%s, `wandb sync` sends it",
        error,
        Path(wandb.run.dir).parent,
    )
    # it would try to end the process once more at exit, and print why it cannot
    with suppress(ConnectionError):
        wandb.teardown()


def _netrc_has(hosts: set[str]) -> bool:
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        entries = netrc.netrc(path)
    except (OSError, netrc.NetrcParseError):
        return False
    return any(entries.authenticators(host) is not None for host in hosts)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (
        OSError,
        subprocess.SubprocessError,
    ):  # no git, no repository, or a hanging network disk
        return None
    return done.stdout.strip()
