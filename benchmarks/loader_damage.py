"""Ways to damage a tar of samples: each a function of its bytes and a generator.

Disks, networks and careless scripts flip bits, cut files, reorder and double members and write
wrong headers. `DAMAGES` are such accidents. `FORGERIES` keep every header valid and hand the
content of one member to another: without a hash of the members nobody can tell, with the shard's
index everybody must.
"""

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable

import numpy as np
from PIL import Image

BLOCK = 512
Damage = Callable[[bytes, np.random.Generator], bytes]


def members_of(tar: bytes) -> list[bytes]:
    """Return the members of a ustar archive, each a header and its padded content."""
    found, at = [], 0
    while any(tar[at : at + BLOCK]):
        size = int(tar[at + 124 : at + 135], 8)
        end = at + BLOCK + -(-size // BLOCK) * BLOCK
        found.append(tar[at:end])
        at = end
    return found


def joined(members: list[bytes]) -> bytes:
    """Return an archive of members, with its end mark."""
    return b"".join(members) + bytes(2 * BLOCK)


def with_checksum(header: bytearray) -> bytes:
    """Return a header whose checksum is right."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def with_content(member: bytes, content: bytes) -> bytes:
    """Return the member with another content."""
    header = bytearray(member[:BLOCK])
    header[124:136] = b"%011o\0" % len(content)
    return with_checksum(header) + content + bytes(-len(content) % BLOCK)


def content_of(member: bytes) -> bytes:
    """Return what a member holds, without its header and padding."""
    return member[BLOCK : BLOCK + int(member[124:135], 8)]


def flip(tar: bytes, rng: np.random.Generator) -> bytes:
    """Flip one to eight bits anywhere."""
    bad = bytearray(tar)
    for at in rng.integers(0, len(bad), rng.integers(1, 9)):
        bad[at] ^= 1 << int(rng.integers(0, 8))
    return bytes(bad)


def flip_header(tar: bytes, rng: np.random.Generator) -> bytes:
    """Flip a bit of a header outside its name, and mend the checksum."""
    members = members_of(tar)
    i = int(rng.integers(0, len(members)))
    header = bytearray(members[i][:BLOCK])
    header[int(rng.integers(100, BLOCK))] ^= 1 << int(rng.integers(0, 8))
    members[i] = with_checksum(header) + members[i][BLOCK:]
    return joined(members)


def cut(tar: bytes, rng: np.random.Generator) -> bytes:
    """End the file anywhere."""
    return tar[: int(rng.integers(0, len(tar)))]


def cut_at_block(tar: bytes, rng: np.random.Generator) -> bytes:
    """End the file where a header or a content begins or ends."""
    return tar[: int(rng.integers(0, len(tar) // BLOCK)) * BLOCK]


def shuffle(tar: bytes, rng: np.random.Generator) -> bytes:
    """Bring all members into another order."""
    members = members_of(tar)
    return joined([members[i] for i in rng.permutation(len(members))])


def swap(tar: bytes, rng: np.random.Generator) -> bytes:
    """Exchange two members."""
    members = members_of(tar)
    i, j = rng.choice(len(members), 2, replace=False)
    members[i], members[j] = members[j], members[i]
    return joined(members)


def shuffle_samples(tar: bytes, rng: np.random.Generator) -> bytes:
    """Bring whole samples into another order: harmless."""
    groups: dict[bytes, list[bytes]] = {}
    for member in members_of(tar):
        groups.setdefault(member.split(b".", 1)[0], []).append(member)
    keys = list(groups)
    return joined([m for i in rng.permutation(len(keys)) for m in groups[keys[i]]])


def double(tar: bytes, rng: np.random.Generator) -> bytes:
    """Write a member a second time, somewhere."""
    members = members_of(tar)
    again = members[int(rng.integers(0, len(members)))]
    members.insert(int(rng.integers(0, len(members) + 1)), again)
    return joined(members)


def drop(tar: bytes, rng: np.random.Generator) -> bytes:
    """Leave out a member."""
    members = members_of(tar)
    del members[int(rng.integers(0, len(members)))]
    return joined(members)


SIZES = (
    b"%011o\0",  # any number
    b"\xff" * 12,  # -1 in base 256
    b"\x80" + b"\xff" * 11,  # very large in base 256
    b"77777777777\0",
    b"-0000000777\0",
    b"xyz" + bytes(9),
    bytes(12),
)


def wrong_size(tar: bytes, rng: np.random.Generator) -> bytes:
    """Write another size into a header, and mend the checksum."""
    members = members_of(tar)
    i = int(rng.integers(0, len(members)))
    size = SIZES[int(rng.integers(0, len(SIZES)))]
    header = bytearray(members[i][:BLOCK])
    header[124:136] = size % int(rng.integers(0, 5000)) if b"%" in size else size
    members[i] = with_checksum(header) + members[i][BLOCK:]
    return joined(members)


def wrong_kind(tar: bytes, rng: np.random.Generator) -> bytes:
    """Make a member a link, folder, device, long name, pax header or sparse file."""
    members = members_of(tar)
    i = int(rng.integers(0, len(members)))
    header = bytearray(members[i][:BLOCK])
    header[156] = b"1234567LKSxgVZ\xff"[int(rng.integers(0, 15))]
    members[i] = with_checksum(header) + members[i][BLOCK:]
    return joined(members)


NAMES = (
    b"../../etc/x.source.png",
    b"/abs.source.png",
    b"",
    b".source.png",
    b"a.source.exe",
    b"\xff\xfe.source.png",
    b"a\nb.source.png",
    b"c:\\x.source.png",
    b"x" * 100,
)


def wrong_name(tar: bytes, rng: np.random.Generator) -> bytes:
    """Give a member a name that no sample has."""
    members = members_of(tar)
    i = int(rng.integers(0, len(members)))
    header = bytearray(members[i][:BLOCK])
    header[:100] = NAMES[int(rng.integers(0, len(NAMES)))].ljust(100, b"\0")
    members[i] = with_checksum(header) + members[i][BLOCK:]
    return joined(members)


PAX = (
    b"size=-1",
    b"size=99999999999999999999",
    b"path=../../../tmp/x",
    b"GNU.sparse.size=9999999999",
    b"GNU.sparse.map=0,5,x",
    b"mtime=nan",
    b"path=\xff\xff",
    b"linkpath=/etc/passwd",
    b"hdrcharset=BINARY",
)


def pax(tar: bytes, rng: np.random.Generator) -> bytes:
    """Put an extended header before a member, right or wrong about its own length."""
    members = members_of(tar)
    i = int(rng.integers(0, len(members)))
    record = b" " + PAX[int(rng.integers(0, len(PAX)))] + b"\n"
    length = len(record) + 2 if rng.random() < 0.7 else int(rng.integers(0, 10**6))
    header = bytearray(with_content(members[0], b"%d%s" % (length, record)))
    header[156] = ord("x") if rng.random() < 0.8 else ord("g")
    members.insert(i, with_checksum(header[:BLOCK]) + bytes(header[BLOCK:]))
    return joined(members)


def zero(tar: bytes, rng: np.random.Generator) -> bytes:
    """Lose one to four blocks: a disk returns zeros."""
    bad, count = bytearray(tar), int(rng.integers(1, 5))
    at = int(rng.integers(0, -(-len(bad) // BLOCK))) * BLOCK
    bad[at : at + count * BLOCK] = bytes(len(bad[at : at + count * BLOCK]))
    return bytes(bad)


def insert(tar: bytes, rng: np.random.Generator) -> bytes:
    """Put random bytes somewhere, so that what follows is no longer aligned."""
    at = int(rng.integers(0, len(tar)))
    return tar[:at] + rng.bytes(int(rng.integers(1, 1500))) + tar[at:]


def append(tar: bytes, rng: np.random.Generator) -> bytes:
    """Put something behind the end: bytes, or the archive again."""
    return tar + (rng.bytes(int(rng.integers(1, 3000))) if rng.random() < 0.5 else tar)


def compress(tar: bytes, rng: np.random.Generator) -> bytes:
    """Compress the archive, or make it something else altogether."""
    kinds = (gzip.compress, bz2.compress, lzma.compress, lambda tar: rng.bytes(len(tar)))
    return kinds[int(rng.integers(0, len(kinds)))](tar)


def wrong_picture(tar: bytes, rng: np.random.Generator) -> bytes:
    """Damage a picture inside a sound archive."""
    members = members_of(tar)
    pictures = [i for i, member in enumerate(members) if b".json" not in member[:100]]
    i = int(rng.choice(pictures))
    members[i] = with_content(members[i], _bad_picture(content_of(members[i]), rng))
    return joined(members)


def _bad_picture(picture: bytes, rng: np.random.Generator) -> bytes:
    match int(rng.integers(0, 6)):
        case 0:
            return flip(picture, rng)
        case 1:
            return cut(picture, rng)
        case 2:  # a header that promises very many pixels
            return picture[:16] + rng.bytes(8) + picture[24:]
        case 3:
            return rng.bytes(int(rng.integers(0, 600)))
        case 4:
            buffer = io.BytesIO()
            kind = ("GIF", "TIFF", "BMP", "PPM")[int(rng.integers(0, 4))]
            Image.new("RGB", (16, 16), (9, 9, 9)).save(buffer, kind)
            return buffer.getvalue()
        case _:  # another size than its partner
            buffer = io.BytesIO()
            height, width = (int(n) for n in rng.integers(1, 60, 2))
            Image.new("RGB", (width, height), (9, 9, 9)).save(buffer, "PNG")
            return buffer.getvalue()


TEXTS = (
    b"",
    b"null",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"instruction": "\\ud800", "task": "local"}',
    b'{"instruction": 1e999, "task": "local"}',
    b'{"instruction": ' + b"9" * 5000 + b', "task": "local"}',
    b'{"instruction": "\\u0000\\u202e", "task": "local"}',
    b'{"instruction": "' + b"x" * 10_000 + b'", "task": "local"}',
    b'{"instruction": "do", "task": "add"}',
    b'{"instruction": "do", "task": "local", "target_caption": []}',
    b"\xef\xbb\xbf{}",
    json.dumps({"instruction": "do", "task": "local"}).encode("utf-16"),
)


def wrong_text(tar: bytes, rng: np.random.Generator) -> bytes:
    """Damage the json of a sample inside a sound archive."""
    members = members_of(tar)
    texts = [i for i, member in enumerate(members) if b".json" in member[:100]]
    i, choice = int(rng.choice(texts)), int(rng.integers(0, len(TEXTS) + 3))
    content = content_of(members[i])
    text = TEXTS[choice] if choice < len(TEXTS) else flip(content, rng)
    members[i] = with_content(members[i], text)
    return joined(members)


def trade(tar: bytes, rng: np.random.Generator) -> bytes:
    """Exchange the contents of two members of one role, headers kept."""
    members = members_of(tar)
    role = (b".source.", b".target.", b".json")[int(rng.integers(0, 3))]
    alike = [i for i, member in enumerate(members) if role in member[:100]]
    i, j = rng.choice(alike, 2, replace=False)
    first, second = content_of(members[i]), content_of(members[j])
    members[i], members[j] = (
        with_content(members[i], second),
        with_content(members[j], first),
    )
    return joined(members)


def copy_block(tar: bytes, rng: np.random.Generator) -> bytes:
    """Overwrite a block by another."""
    bad, blocks = bytearray(tar), len(tar) // BLOCK
    here, there = (int(i) * BLOCK for i in rng.integers(0, blocks, 2))
    bad[there : there + BLOCK] = tar[here : here + BLOCK]
    return bytes(bad)


DAMAGES: dict[str, Damage] = {
    damage.__name__: damage
    for damage in (
        flip,
        flip_header,
        cut,
        cut_at_block,
        shuffle,
        swap,
        shuffle_samples,
        double,
        drop,
        wrong_size,
        wrong_kind,
        wrong_name,
        pax,
        zero,
        insert,
        append,
        compress,
        wrong_picture,
        wrong_text,
    )
}
FORGERIES: dict[str, Damage] = {damage.__name__: damage for damage in (trade, copy_block)}
