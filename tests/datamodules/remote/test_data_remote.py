import hashlib
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from datamodules.remote import fetch as remote_fetch
from datamodules.remote.folder import CacheSettings, LocalFolder, RemoteFolder, open_folder
from datamodules.shards.manifest import Manifest, ShardEntry
from emu_edit.errors import ExitStatus, InputError, ShardError, StorageError
from tests.datamodules import loopback
from tests.datamodules.loopback import Behaviour, Site, serve
from tests.datamodules.toy_shards import make_folder

FIRST = "local-000000.tar"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_fetch, "FIRST_PAUSE", 0.01)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    make_folder(folder, {"local": 6, "add": 3})
    return folder


@pytest.fixture
def site(data: Path) -> Iterator[Site]:
    with serve(data) as served:
        yield served


@pytest.fixture
def cache(tmp_path: Path) -> CacheSettings:
    return CacheSettings(folder=str(tmp_path / "cache"), stall=0.3, deadline=20.0)


def remote(site: Site, cache: CacheSettings) -> RemoteFolder:
    folder = open_folder(site.url, cache)
    assert isinstance(folder, RemoteFolder)
    return folder


def first_entry(manifest: Manifest) -> ShardEntry:
    return next(entry for entry in manifest.entries if entry.file == FIRST)


def leftovers(cache: CacheSettings) -> list[str]:
    """Return the files of the cache that are neither shards nor indices nor locks."""
    files = [path for path in cache.place.rglob("*") if path.is_file()]
    return [p.name for p in files if p.parent.name != ".locks" and p.suffix not in {".tar", ".npy"}]


def test_what_a_plain_folder_gives_a_url_gives_too(data: Path, site: Site, cache: CacheSettings):
    near, far = open_folder(data), remote(site, cache)
    assert isinstance(near, LocalFolder)
    assert far.manifest == near.manifest
    for entry in near.manifest.entries:
        assert far.path(entry).read_bytes() == near.path(entry).read_bytes()
        np.testing.assert_array_equal(far.index(entry), near.index(entry))
    assert far.read_file("manifest.json") == near.read_file("manifest.json")
    assert far.retries == near.retries == 0
    # neither indices nor sizes are asked for
    assert site.requests == {"manifest.json": 2, **{e.file: 1 for e in near.manifest.entries}}


def test_the_cache_outlives_the_run(site: Site, cache: CacheSettings):
    for _ in range(3):
        folder = remote(site, cache)
        for entry in folder.manifest.entries:
            folder.path(entry)
    assert site.requests[FIRST] == 1
    assert site.requests["manifest.json"] == 3


def test_a_shard_under_another_address_is_not_fetched_again(data: Path, cache: CacheSettings):
    with serve(data) as first:
        folder = remote(first, cache)
        folder.path(folder.manifest.entries[0])
    with serve(data) as second:
        folder = remote(second, cache)
        folder.path(folder.manifest.entries[0])
    assert second.requests == {"manifest.json": 1}


TRANSIENT: dict[str, list[Behaviour]] = {
    "503 twice": [loopback.status(503), loopback.status(503)],
    "429": [loopback.status(429)],
    "408": [loopback.status(408)],
    "500": [loopback.status(500)],
    "dropped in the body": [loopback.drop, loopback.drop],
    "reset in the body": [loopback.reset],
    "short with its length": [loopback.short],
    "short without a length": [loopback.short_without_length, loopback.short_without_length],
    "stalls in the body": [loopback.stall],
    "never answers": [loopback.silent],
    "a flipped bit once": [loopback.flipped],
    "longer once": [loopback.longer],
    "all of them": [loopback.status(503), loopback.drop, loopback.flipped, loopback.stall],
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_a_transient_failure_is_tried_again_and_counted(
    name: str, data: Path, site: Site, cache: CacheSettings
):
    folder = remote(site, cache)
    entry = first_entry(folder.manifest)
    site.plan[FIRST] = list(TRANSIENT[name])
    assert folder.path(entry).read_bytes() == (data / FIRST).read_bytes()
    assert site.requests[FIRST] == len(TRANSIENT[name]) + 1
    assert folder.retries == len(TRANSIENT[name])
    assert leftovers(cache) == []


@pytest.mark.parametrize("name", ["503 twice", "dropped in the body", "never answers"])
def test_the_manifest_is_tried_again_too(name: str, site: Site, cache: CacheSettings):
    site.plan["manifest.json"] = list(TRANSIENT[name])
    assert remote(site, cache).manifest.num_samples == 9


@pytest.mark.parametrize("behave", [loopback.slow, loopback.without_length])
def test_slow_answers_and_those_without_a_length_are_taken(
    behave: Behaviour, data: Path, site: Site, cache: CacheSettings
):
    site.always[FIRST] = behave
    folder = remote(site, cache)
    path = folder.path(first_entry(folder.manifest))
    assert path.read_bytes() == (data / FIRST).read_bytes()
    assert site.requests[FIRST] == 1


# what the server always does: the error, the words a user sees, and the attempts
PERMANENT: dict[str, tuple[Behaviour, type[InputError], str, int]] = {
    "404": (loopback.status(404), StorageError, r"status 404 \(not found\) \(1 attempt in", 1),
    "403": (
        loopback.status(403),
        StorageError,
        r"status 403 \(forbidden\) .*the rights to read",
        1,
    ),
    "401": (loopback.status(401), StorageError, r"status 401 \(not authorized\)", 1),
    "503": (
        loopback.status(503),
        StorageError,
        r"status 503 \(3 attempts in [\d.]+ s; before: status 503, status 503\); see whether",
        3,
    ),
    "drops": (loopback.drop, StorageError, r"connection lost in the middle \(3 attempts", 3),
    "resets": (loopback.reset, StorageError, r"(connection lost|request failed).*\(3 attempts", 3),
    "stalls": (loopback.stall, StorageError, r"timed out \(3 attempts", 3),
    "wrong bytes": (
        loopback.flipped,
        ShardError,
        r"has sha256 \w{12}\.\.\., not \w{12}\.\.\. of the manifest \(2 attempts.*was replaced",
        2,
    ),
    "longer": (loopback.longer, ShardError, r"is longer than the \d+ bytes.*was replaced", 2),
    "shorter": (loopback.short, ShardError, r"ended after \d+ of \d+ bytes \(3 att.*replaced", 3),
    "short without a length": (
        loopback.short_without_length,
        ShardError,
        r"ended after \d+ of \d+ bytes \(3 attempts",
        3,
    ),
}


@pytest.mark.parametrize("name", PERMANENT)
def test_a_shard_that_cannot_be_had_is_named_with_its_address_and_why(
    name: str, site: Site, cache: CacheSettings
):
    behave, error, words, attempts = PERMANENT[name]
    folder = remote(site, CacheSettings(cache.folder, attempts=3, stall=0.1))
    site.always[FIRST] = behave
    with pytest.raises(error, match=words) as caught:
        folder.path(first_entry(folder.manifest))
    assert str(caught.value).startswith(f"{site.url}/{FIRST}: ")
    assert "\n" not in str(caught.value)
    wanted = ExitStatus.storage if error is StorageError else ExitStatus.bad_data
    assert caught.value.status == wanted
    assert site.requests[FIRST] == attempts
    assert leftovers(cache) == []
    assert not list(cache.place.rglob("*.tar"))


def test_a_server_that_is_not_there_is_a_storage_error(site: Site, cache: CacheSettings):
    folder = remote(site, CacheSettings(cache.folder, attempts=2))
    gone = RemoteFolder(
        type(folder.address)("http://127.0.0.1:9"),  # the discard port: nobody listens
        folder.manifest,
        folder.cache,
        folder.policy,
        folder._retries,
    )
    with pytest.raises(StorageError, match=r"request failed \(Connection refused.*\(2 attempts"):
        gone.path(folder.manifest.entries[0])


def test_a_folder_without_a_manifest_is_named(site: Site, cache: CacheSettings):
    with pytest.raises(StorageError, match=r"/nothing/manifest\.json: status 404"):
        open_folder(f"{site.url}/nothing", cache)


def test_the_deadline_ends_the_attempts(site: Site, cache: CacheSettings):
    folder = remote(site, CacheSettings(cache.folder, deadline=0.4, stall=5.0))
    site.always[FIRST] = loopback.slow  # takes a second
    with pytest.raises(StorageError, match=r"slower than the deadline of 0\.4 s \(1 attempt in"):
        folder.path(first_entry(folder.manifest))


def test_no_attempt_begins_that_would_begin_after_the_deadline(
    monkeypatch: pytest.MonkeyPatch, site: Site, cache: CacheSettings
):
    monkeypatch.setattr(remote_fetch, "FIRST_PAUSE", 20.0)
    folder = remote(site, CacheSettings(cache.folder, deadline=1.0))
    site.always[FIRST] = loopback.status(503)
    with pytest.raises(StorageError, match=r"status 503 \(1 attempt in 0\.\d s\)"):
        folder.path(first_entry(folder.manifest))


def test_pauses_double_and_differ_between_processes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_fetch, "FIRST_PAUSE", 0.5)
    pauses = [remote_fetch._pause("x.tar", attempt) for attempt in range(1, 12)]
    for attempt, pause in enumerate(pauses):
        whole = min(0.5 * 2**attempt, remote_fetch.LONGEST_PAUSE)
        assert 0.5 * whole <= pause <= 1.5 * whole
    assert pauses == [remote_fetch._pause("x.tar", attempt) for attempt in range(1, 12)]
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert pauses != [remote_fetch._pause("x.tar", attempt) for attempt in range(1, 12)]


def test_a_manifest_that_is_no_manifest_is_refused(data: Path, site: Site, cache: CacheSettings):
    (data / "manifest.json").write_text("<html>sign in</html>")
    with pytest.raises(ShardError, match=r"/manifest\.json is not JSON"):
        remote(site, cache)


def test_a_shard_no_reader_would_trust_is_named_with_its_address(
    data: Path, site: Site, cache: CacheSettings
):
    content = (data / FIRST).read_bytes()[:7000]  # cut, and so in the manifest
    old = (data / FIRST).read_bytes()
    (data / FIRST).write_bytes(content)
    text = (data / "manifest.json").read_text()
    text = text.replace(hashlib.sha256(old).hexdigest(), hashlib.sha256(content).hexdigest())
    (data / "manifest.json").write_text(text.replace(str(len(old)), str(len(content))))
    folder = remote(site, cache)
    with pytest.raises(
        ShardError, match=rf"^{site.url}/{FIRST}: .* is (cut inside a member|not a plain tar)"
    ):
        folder.path(first_entry(folder.manifest))


def test_secrets_of_an_address_are_sent_but_never_shown(
    site: Site, cache: CacheSettings, caplog: pytest.LogCaptureFixture
):
    host = site.url.removeprefix("http://")
    place = f"http://anna:CANARY1@{host}?token=CANARY2"
    folder = open_folder(place, CacheSettings(cache.folder, attempts=2))
    assert site.headers["Authorization"].startswith("Basic ")
    assert site.queries[-1] == "token=CANARY2"
    assert isinstance(folder, RemoteFolder)
    for behave in [loopback.status(503), loopback.status(403), loopback.drop, loopback.flipped]:
        site.always[FIRST] = behave
        with pytest.raises(InputError, match=rf"^http://{host}/{FIRST}\?\.\.\.: ") as caught:
            folder.path(first_entry(folder.manifest))
        error: BaseException | None = caught.value
        assert "CANARY" not in repr(error)
        assert error.__suppress_context__
    assert folder.name == f"http://{host}?..."
    assert "CANARY" not in f"{folder!r}{folder.name}{caplog.text}"
    assert "attempt 2 of 2" in caplog.text


def test_the_whole_of_a_file_is_asked_for_uncompressed(site: Site, cache: CacheSettings):
    remote(site, cache)
    assert site.headers["Accept-Encoding"] == "identity"
    assert "Range" not in site.headers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attempts", 0),
        ("attempts", -1),
        *product(["max_gb", "deadline", "stall"], [0.0, -1.0, float("inf"), float("nan")]),
    ],
)
def test_settings_that_cannot_be_waited_for_are_refused(name: str, value: float):
    with pytest.raises(InputError, match=rf"data\.cache\.{name}={value!r} must be above 0"):
        CacheSettings(**{name: value})  # pyright: ignore[reportArgumentType]
