"""Servers that never end an answer, and servers that lead elsewhere."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from datamodules.remote import fetch as remote_fetch
from datamodules.remote import redirects
from datamodules.remote.folder import CacheSettings, RemoteFolder, open_folder
from datamodules.remote.redirects import Reach, reach_of
from datamodules.shards.manifest import MAX_BYTES
from emu_edit.errors import StorageError
from tests.datamodules import loopback
from tests.datamodules.loopback import Behaviour, Site, serve
from tests.datamodules.toy_shards import make_folder

FIRST = "local-000000.tar"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_fetch, "FIRST_PAUSE", 0.01)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    make_folder(tmp_path / "data", {"local": 2})
    with serve(tmp_path / "data") as served:
        yield served


def remote(site: Site, *, stall: float = 30.0, deadline: float = 60.0) -> RemoteFolder:
    """Open the folder, patiently; its shards are to be had within other bounds."""
    place = str(site.folder.parent / "cache")
    folder = open_folder(site.url, CacheSettings(place))
    assert isinstance(folder, RemoteFolder)
    policy = remote_fetch.RetryPolicy(attempts=2, deadline=deadline, stall=stall)
    return RemoteFolder(folder.address, folder.manifest, folder.cache, policy, folder._retries)


def fetch_first(folder: RemoteFolder) -> Path:
    return folder.path(folder.manifest.entries[0])


# none is ever silent, so a limit of silence alone would wait for ever; here: until they tire
NEVER_DATA: dict[str, Behaviour] = {
    "a header byte by byte": loopback.dripped_header,
    "headers without end": loopback.dripped_headers,
    "the extension of a chunk byte by byte": loopback.dripped_extension,
    "a trailer byte by byte": loopback.dripped_trailer,
    "102 without end": loopback.processing,
    "102 without end, as fast as it can": loopback.flood,
}


@pytest.mark.parametrize("name", NEVER_DATA)
def test_an_answer_that_goes_on_without_data_ends_with_the_stall(name: str, site: Site):
    folder = remote(site, stall=0.2)
    site.always[FIRST] = NEVER_DATA[name]
    with pytest.raises(StorageError, match=r"timed out \(2 attempts.*before: timed out\); see"):
        fetch_first(folder)
    assert site.requests[FIRST] == 2


@pytest.mark.parametrize("name", ["a header byte by byte", "102 without end"])
def test_an_answer_that_goes_on_without_data_ends_with_the_deadline(name: str, site: Site):
    folder = remote(site, deadline=0.3)
    site.always[FIRST] = NEVER_DATA[name]
    with pytest.raises(StorageError, match=r"slower than the deadline of 0\.3 s \(1 attempt in"):
        fetch_first(folder)


def test_what_is_cut_off_is_let_go_of(site: Site):
    left = threading.Event()

    def behave(handler: loopback.Handler, data: bytes) -> None:
        try:
            loopback.dripped_header(handler, data)
        except OSError:
            left.set()

    folder = remote(site, deadline=0.3)
    site.always[FIRST] = behave
    with pytest.raises(StorageError, match="slower than the deadline"):
        fetch_first(folder)
    assert left.wait(20)


def test_another_protocol_that_never_answers_ends_with_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    is_over = threading.Event()
    monkeypatch.setattr(MemoryFileSystem, "open", lambda *_, **__: is_over.wait(20))
    cache = CacheSettings(str(tmp_path / "cache"), deadline=0.3)
    words = r"^memory://b/data/manifest\.json: slower than the deadline of 0\.3 s \(1 attempt"
    try:
        with pytest.raises(StorageError, match=words):
            open_folder("memory://b/data", cache)
    finally:
        is_over.set()


def test_a_manifest_has_one_bound_near_and_far(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
):
    from datamodules.remote import folder

    assert folder.MAX_BYTES == MAX_BYTES
    monkeypatch.setattr(folder, "MAX_BYTES", 100)
    with pytest.raises(StorageError, match=r"manifest\.json: is longer than 100 bytes \(1 attempt"):
        open_folder(site.url, CacheSettings(str(tmp_path / "cache")))


def test_a_redirect_is_followed_but_not_to_an_open_line(site: Site):
    folder = remote(site)
    entry = folder.manifest.entries[0]
    site.plan[FIRST] = [loopback.redirect("http://example.invalid/x.tar?sig=CANARY")]
    with pytest.raises(StorageError, match=r"redirected to http:// on example\.invalid") as caught:
        folder.path(entry)
    assert "CANARY" not in str(caught.value)
    site.plan[FIRST] = [loopback.redirect(f"{site.url}/{FIRST}")]
    assert folder.path(entry).stat().st_size == entry.bytes


# what the answer leads with: its header and place, and the words a user sees
NOWHERE = {
    "no Location": ("X-Nothing", "x", r"redirected without an address to go to \(Location\)"),
    "an empty one": ("Location", "", r"redirected without an address to go to \(Location\)"),
    "the older header": (
        "URI",
        "http://127.0.0.1/x",
        r"redirected without an address to go to \(Location\)",
    ),
    "another protocol": ("Location", "file:///etc/passwd", "redirected to what is no web address"),
    "no port": ("Location", "http://127.0.0.1:CANARY/", "redirected to what is no web address"),
}


@pytest.mark.parametrize("name", NOWHERE)
def test_a_redirect_to_nowhere_is_refused_at_once(name: str, site: Site):
    header, target, words = NOWHERE[name]
    folder = remote(site)
    site.always[FIRST] = loopback.redirect(target, header=header)
    with pytest.raises(StorageError, match=rf"^{site.url}/{FIRST}: {words} \(1 att") as caught:
        fetch_first(folder)
    assert "CANARY" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_user_who_names_this_machine_may_be_led_on_over_it(site: Site):
    folder = remote(site)
    site.plan[FIRST] = [loopback.redirect(f"{site.url.replace('127.0.0.1', 'localhost')}/{FIRST}")]
    assert fetch_first(folder).stat().st_size == folder.manifest.entries[0].bytes


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("http://127.0.0.2/x?sig=CANARY", r"127\.0\.0\.2, an address of this machine"),
        ("http://[::1]/x", r"::1, an address of this machine"),
        ("https://0.0.0.0/x", r"0\.0\.0\.0, an address of this machine"),
        ("https://2130706434/x", r"2130706434, an address of this machine"),
        ("https://169.254.169.254/x", r"169\.254\.169\.254, an address of this link"),
        ("https://10.0.0.1/x", r"10\.0\.0\.1, an address of this network"),
        ("https:////192.168.1.1/x", r"to what is no web address"),
    ],
)
def test_a_server_of_the_internet_does_not_lead_inward(
    target: str, words: str, site: Site, monkeypatch: pytest.MonkeyPatch
):
    def reach_where_the_site_is_outside(address: str) -> Reach:
        return Reach.internet if address == "127.0.0.1" else reach_of(address)

    monkeypatch.setattr(redirects, "reach_of", reach_where_the_site_is_outside)
    folder = remote(site)
    site.always[FIRST] = loopback.redirect(target)
    with pytest.raises(StorageError, match=rf"redirected .*{words}") as caught:
        fetch_first(folder)
    assert site.requests[FIRST] == 1
    assert "CANARY" not in str(caught.value)


def test_how_far_inward_an_address_lies():
    assert reach_of("8.8.8.8") == reach_of("2606:4700::1111") == Reach.internet
    for address in ("10.1.2.3", "172.16.0.1", "192.168.0.1", "100.64.0.1", "fd00::1"):
        assert reach_of(address) == Reach.network
    assert reach_of("169.254.169.254") == reach_of("fe80::1%eth0") == Reach.link
    for address in ("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"):
        assert reach_of(address) == Reach.machine
    assert Reach.internet < Reach.network < Reach.link < Reach.machine
