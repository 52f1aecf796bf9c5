"""The Weights & Biases logger: offline when nobody is logged in, and no secret is stored.

W&B would keep the command line, the console and the code; all three may hold secrets and are
switched off. What a reader of the run needs instead, the resolved config under the names of the
command line and the git revision, is written by us, with secrets replaced.
"""

import logging
import netrc
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import Any, Literal
from urllib.parse import urlsplit

import wandb
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from wandb.errors import CommError

from emu_edit.editing.find import CONFIG

PROJECT = "emu-edit"
RUN_FOLDER = re.compile(r"run-(?P<time>\d{8}_\d{6})-(?P<id>.+)$")  # W&B's, of one start
KEY_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
SAME_SERVER = {
    "api.forge.coreweave.com": "api.wandb.ai"
}  # wandb 0.31 accepts a key of the old name
REDACTED = "***"
# whole words, so that tokenizer, num_tokens and max_tokens stay readable
SECRET_WORDS = {
    *("token", "secret", "password", "passwd", "pwd", "passphrase", "credential", "credentials"),
    *("apikey", "accesskey", "privatekey", "auth", "authorization", "signature"),
}
# up to the last @ of the login, which may itself hold one; a password may hold a slash, a port not
URL_CREDENTIALS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?:[^/\s:@]+:(?!\d+(?:/|\s|$))\S*|[^/\s]+)@", re.IGNORECASE
)
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
    """Tell whether a key names a secret, such as token, password, api_key or signature.

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


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Name each value of a config by the option that sets it, such as `model.optimizer.lr`.

    Parts in a list, such as callbacks, are named by their class; the second of a class is `Ema-2`.
    """
    found: dict[str, object] = {}
    for name, value in values.items():
        here = prefix if name == "init_args" else f"{prefix}{name}."
        match value:
            case Mapping():
                found |= flat(value, here)
            case [{"class_path": _}, *_] if all(isinstance(part, Mapping) for part in value):
                found |= flat(_by_class(list(value)), here)
            case _:
                found[here.removesuffix(".")] = value
    return found


def wandb_loggers(trainer: Trainer) -> "list[WandbLogger]":
    """Return the trainer's loggers to Weights & Biases; usually one or none."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


class WandbLogger(LightningWandbLogger):
    """Log to Weights & Biases, into the run's folder.

    Offline runs are stored in `save_dir/wandb` and can be sent later with `wandb sync`. What is not
    given is taken from W&B's own variables (`WANDB_PROJECT`, `WANDB_NAME`, ...), which sweeps set.

    Args:
        project: name of the W&B project; none means WANDB_PROJECT, or else emu-edit.
        save_dir: the run's folder.
        name: name of the run; none means WANDB_NAME, or else that of the run's folder.
        id: identity of the run; the same one continues it. None means WANDB_RUN_ID, or else a new
            one, and that of its first start when a run is resumed in its folder.
        tags: labels to find the run by; none means WANDB_TAGS.
        entity: user or team; none means WANDB_ENTITY, or else the one logged in.
        group: of runs that belong together; none means WANDB_RUN_GROUP.
        log_model: whether the model directory at the end becomes an artifact of the run.
    """

    def __init__(
        self,
        project: str | None = None,
        save_dir: str = "runs",
        name: str | None = None,
        id: str | None = None,
        tags: list[str] | None = None,
        entity: str | None = None,
        group: str | None = None,
        log_model: bool = False,
    ) -> None:
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        folder = Path(save_dir).absolute()
        super().__init__(
            project=project or os.environ.get("WANDB_PROJECT") or PROJECT,
            save_dir=save_dir,
            name=name or os.environ.get("WANDB_NAME") or folder.name,
            id=id or os.environ.get("WANDB_RUN_ID") or _first_id(folder),
            tags=tags,
            entity=entity,
            group=group,
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
        self._wandb_init["dir"] = str(folder)  # W&B's process may have another working directory
        self._has_artifact = log_model
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
        """Store a config in the run: flat, secrets replaced."""
        given = vars(params) if isinstance(params, Namespace) else params
        super().log_hyperparams(flat({name: redact(value, name) for name, value in given.items()}))

    @rank_zero_only
    def log_results(
        self,
        step: int,
        numbers: Mapping[str, float],
        *,
        table: Sequence[Mapping[str, object]],
        pictures: Mapping[str, Path],
        artifact: Path,
    ) -> None:
        """Log what a training has come to; its numbers are then in the run's summary.

        Args:
            step: the last optimizer step.
            numbers: by name.
            table: its rows, all with the same columns; logged as `results`.
            pictures: files by name; missing ones are left out.
            artifact: what has been learnt, a folder or a file; logged if `log_model`.
        """
        found: dict[str, Any] = dict(numbers)
        if table:
            data = [list(row.values()) for row in table]
            found["results"] = wandb.Table(columns=list(table[0]), data=data)
        found |= {n: wandb.Image(str(file)) for n, file in pictures.items() if file.is_file()}
        self.log_metrics(found, step)
        if not self._has_artifact or _is_lost():
            return
        made = wandb.Artifact(re.sub(r"[^\w.-]", "-", f"{self.experiment.name}-model"), "model")
        # "immutable": W&B reads the files where they are, instead of from a copy of its own
        if artifact.is_dir():
            made.add_dir(str(artifact), policy="immutable")
        else:
            made.add_file(str(artifact), policy="immutable")
        try:
            self.experiment.log_artifact(made)
        except ConnectionError as error:
            _lose(error)


@contextmanager
def ending_wandb_run() -> Iterator[None]:
    """End this process's W&B run on the way out, and say where it is, if it holds anything.

    It is marked as failed when an exception passes; Lightning ends it only after a training that
    went through. A run whose W&B process has ended cannot be ended, and is left as it is.
    """
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        run = wandb.run
        if run is not None and not _is_lost():
            has_something = exit_code == 0 or run.step > 0  # beside an error of options or data
            try:
                wandb.finish(exit_code=exit_code)
            except ConnectionError as error:
                _lose(error)
            else:
                sys.stderr.write(_whereabouts(run) if has_something else "")


def _whereabouts(run: Any) -> str:
    """Return the line that says where a run that has ended is; none for one that is disabled."""
    if run.disabled:
        return ""
    if not run.offline:
        return f"W&B         {run.url}\n"
    folder = Path(run.dir).parent
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    parts = sorted(folder.parent.glob(f"offline-run-*-{run.id}"))  # one for each start
    return f"W&B         kept offline; wandb sync {' '.join(quote(str(p)) for p in parts)}\n"


def _first_id(folder: Path) -> str | None:
    """Return the identity a run had when it was begun, None if this is its beginning."""
    if not (folder / CONFIG).is_file():  # of no run, or of one that has not begun
        return None
    found = (RUN_FOLDER.search(path.name) for path in (folder / "wandb").glob("*run-*"))
    starts = sorted((match["time"], match["id"]) for match in found if match is not None)
    return starts[0][1] if starts else None


def _by_class(parts: Sequence[Any]) -> dict[str, object]:
    """Name the parts of a list by their class."""
    named: dict[str, object] = {}
    for part in parts:
        name = str(part.get("class_path")).rpartition(".")[2]
        count = sum(other.partition("-")[0] == name for other in named)
        named[f"{name}-{count + 1}" if count else name] = part
    return named


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
