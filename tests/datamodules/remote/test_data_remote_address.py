from pathlib import Path

import pytest

from datamodules.remote import fetch as remote_fetch
from datamodules.remote.address import Address, is_loopback, parse_place
from datamodules.remote.fetch import RetryPolicy
from datamodules.remote.folder import CacheSettings, LocalFolder, open_folder
from emu_edit.errors import ExitStatus, InputError
from tests.datamodules.toy_shards import make_folder


@pytest.mark.parametrize("place", ["data/train", "/data/train", "./a:b", "C:/data", "http:/typo"])
def test_what_has_no_scheme_is_a_path(place: str):
    assert parse_place(place) == Path(place)


@pytest.mark.parametrize("place", ["file:///data/my%20train", "local:///data/my%20train"])
def test_a_file_address_is_a_path(place: str):
    assert parse_place(place) == Path("/data/my train")


@pytest.mark.parametrize(
    "url",
    [
        "https://host/data",
        "https://user:word@host:8443/data?sig=1",
        "s3://bucket/data",
        "hf://datasets/owner/name@main/data",
        "gs://bucket/data",
        "memory://data",
        "http://localhost:80/data",
        "http://127.0.0.3/data",
        "http://[::1]:8000/data",
    ],
)
def test_what_has_a_scheme_is_an_address(url: str):
    assert parse_place(url) == Address(url)


REFUSED = {
    "pipe:cat x.tar": "data from a command .pipe:. are not read",
    "pipe:https://host/x": "data from a command",
    "simplecache::https://host/data": "^https://: chained",
    "zip://x::https://u:CANARY@host/data.zip": "^zip://: chained addresses .with ::. are not read",
    "htps://host/data": "htps:// is no protocol that can be read; .* Did you mean 'https'",
    "http://host/data": "^http://host/data is not encrypted, .*insecure_http: true",
    "http://u:CANARY@host/data?t=CANARY": r"^http://host/data\?\.\.\. is not encrypted",
    "http://127.0.0.1.evil.org/data": "is not encrypted",
    "http://2130706433/data": "is not encrypted",
    "https:///data": "begins with https:// cannot be used: it has no host",
    "https://user:CANARY/x@host/data": "begins with https:// cannot be used: .*a port that is no",
    "https://host/da ta": "cannot be used: .*spaces",
    "https://host/data#part": "cannot be used: .*'#'",
    "https://host/da\nta": "begins with https:// cannot be used",
}


@pytest.mark.parametrize("place", REFUSED)
def test_an_address_that_should_not_be_read_is_refused_without_its_secrets(place: str):
    with pytest.raises(InputError, match=REFUSED[place]) as caught:
        open_folder(place)
    assert "CANARY" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_open_line_is_read_when_asked_for():
    assert parse_place("http://host/data", insecure_http=True) == Address("http://host/data")


def test_only_this_machine_is_loopback():
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.1.2.3", "::1"]))
    assert not any(map(is_loopback, ["", "host", "10.0.0.1", "0.0.0.0", "localhost.evil.org"]))


@pytest.mark.parametrize(
    ("url", "file", "shown"),
    [
        ("https://h/a/", "https://h/a/x%231.tar", "https://h/a/x#1.tar"),
        ("https://u:p@h:1/a?t=1", "https://u:p@h:1/a/x%231.tar?t=1", "https://h:1/a/x#1.tar?..."),
        ("https://h", "https://h/x%231.tar", "https://h/x#1.tar"),
        ("s3://b/a", "s3://b/a/x#1.tar", "s3://b/a/x#1.tar"),
        ("s3://key:secret@b/a", "s3://key:secret@b/a/x#1.tar", "s3://b/a/x#1.tar"),
        (
            "hf://datasets/o/n@v1/a",
            "hf://datasets/o/n@v1/a/x#1.tar",
            "hf://datasets/o/n@v1/a/x#1.tar",
        ),
    ],
)
def test_files_lie_in_the_folder_and_messages_show_no_secrets(url: str, file: str, shown: str):
    assert Address(url).file("x#1.tar") == file
    assert Address(url).shown("x#1.tar") == shown
    assert "p@" not in repr(Address(url))
    assert "secret" not in repr(Address(url))


def test_a_plain_folder_needs_no_cache(tmp_path: Path):
    make_folder(tmp_path / "data", {"local": 2})
    settings = CacheSettings(folder=str(tmp_path / "cache"))
    for place in (tmp_path / "data", str(tmp_path / "data"), f"file://{tmp_path}/data"):
        folder = open_folder(place, settings)
        assert isinstance(folder, LocalFolder)
        assert folder.name == str(folder) == str(tmp_path / "data")
    assert not (tmp_path / "cache").exists()


def test_another_protocol_of_fsspec_is_read_by_the_same_code(tmp_path: Path):
    import fsspec

    make_folder(tmp_path / "data", {"local": 4})
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/data", "/bucket/data", recursive=True)
    try:
        near = open_folder(tmp_path / "data")
        far = open_folder("memory://bucket/data", CacheSettings(str(tmp_path / "cache")))
        assert far.name == "memory://bucket/data"
        assert far.manifest == near.manifest
        for entry in near.manifest.entries:
            assert far.path(entry).read_bytes() == near.path(entry).read_bytes()
        memory.rm("/bucket", recursive=True)
        with pytest.raises(InputError, match=r"^memory://bucket/data/manifest\.json: status 404"):
            open_folder("memory://bucket/data", CacheSettings(str(tmp_path / "cache")))
    finally:
        memory.store.clear()


def test_a_protocol_whose_package_is_missing_names_it(monkeypatch: pytest.MonkeyPatch):
    def missing(url: str, **options: object) -> None:
        del url, options
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote_fetch.fsspec, "url_to_fs", missing)
    with pytest.raises(InputError, match=r"^s3://bucket/data: .*Install s3fs.*emu-edit\[remote\]"):
        remote_fetch._file_system(Address("s3://bucket/data"), RetryPolicy(1, 1.0, 1.0))


def test_a_config_error_is_no_storage_error():
    with pytest.raises(InputError) as caught:
        parse_place("pipe:true")
    assert caught.value.status == ExitStatus.usage
