"""The simulated store keeps what S3 promises: nothing that is tried on it learns a falsehood."""

from __future__ import annotations

import threading
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from servers.wire import Wire, completion, send_part
from tools.simulated_store import Settings, SimulatedStore
from tools.simulated_store.holdings import SMALLEST_PART


@pytest.fixture
def wire(simulated_store: SimulatedStore) -> Iterator[Wire]:
    """Plain HTTP to the simulated store."""
    wire = Wire(simulated_store.endpoint)
    yield wire
    wire.close()


def test_objects_are_put_read_in_ranges_copied_and_deleted(
    wire: Wire, simulated_store: SimulatedStore
) -> None:
    """Names are any text; a range is of those bytes; a missing object is 404."""
    path = "/bucket/a%20b%2Bc+%25/%C3%A4%23"
    assert wire.status("PUT", path, b"0123456789") == 200
    assert simulated_store.objects() == {"a b+c+%/ä#": 10}
    assert wire.ask("GET", path)[:2] == (200, b"0123456789")
    for wanted, found in {"2-4": b"234", "7-": b"789", "-3": b"789", "8-99": b"89"}.items():
        assert wire.ask("GET", path, Range=f"bytes={wanted}")[:2] == (206, found)
    assert wire.status("GET", path, Range="bytes=10-") == 416
    status, body, headers = wire.ask("HEAD", path)
    assert (status, body, headers["Content-Length"]) == (200, b"", "10")
    assert wire.status("PUT", "/bucket/copy", x_amz_copy_source=path) == 200
    assert simulated_store.get("copy") == b"0123456789"
    assert wire.status("DELETE", path) == wire.status("DELETE", path) == 204
    assert wire.status("GET", path) == wire.status("HEAD", path) == 404
    assert wire.status("PUT", "/nowhere/x", b"1") == 404
    assert b"NoSuchBucket" in wire.ask("GET", "/nowhere?list-type=2")[1]


def test_listings_come_in_pages_with_common_prefixes(
    wire: Wire, simulated_store: SimulatedStore
) -> None:
    """Each name once, in order, however small the pages are."""
    for key in ("a", "b/1", "b/2", "b/c/3", "d&<", "e"):
        simulated_store.put(key, b"1")
    for page in (1, 2, 1000):
        simulated_store.configure(Settings(page=page))
        for query, expected in {
            "": ["a", "b/1", "b/2", "b/c/3", "d&<", "e"],
            "&prefix=b/": ["b/1", "b/2", "b/c/3"],
            "&delimiter=/": ["a", "d&<", "e"],
            "&prefix=b/&delimiter=/": ["b/1", "b/2"],
        }.items():
            assert listed(wire, query, "Key") == expected
        assert listed(wire, "&delimiter=/", "Prefix") == ["b/"]
    assert listed(wire, "&start-after=b/2", "Key") == ["b/c/3", "d&<", "e"]
    assert listed(wire, "&encoding-type=url&prefix=d", "Key") == ["d%26%3C"]


def listed(wire: Wire, query: str, name: str) -> list[str]:
    """Return the texts of elements called `name` in all pages, but for those outside of entries."""
    found: list[str] = []
    token = ""
    while True:
        page = f"/bucket?list-type=2{query}{token}"
        inside = ET.fromstring(wire.ask("GET", page)[1])
        found += [
            e.text or ""
            for kind in ("Contents", "CommonPrefixes")
            for entry in inside.iter(kind)
            for e in entry.iter(name)
        ]
        if inside.findtext("IsTruncated") == "false":
            return found
        last = inside.findtext("NextContinuationToken") or ""
        token = f"&continuation-token={urllib.parse.quote(last)}"


def test_an_upload_appears_as_a_whole_when_it_is_completed(
    wire: Wire, simulated_store: SimulatedStore
) -> None:
    """Its parts in their order, whichever came first; then it is unknown."""
    upload, large = wire.begin("f"), bytes(SMALLEST_PART)
    second = send_part(wire, "f", upload, 2, b"end")
    first = send_part(wire, "f", upload, 1, large)
    assert simulated_store.objects() == {}
    assert simulated_store.uploads() == [("f", 2)]
    path = f"/bucket/f?uploadId={upload}"
    assert wire.status("POST", path, completion((1, first), (2, second))) == 200
    assert simulated_store.get("f") == large + b"end"
    assert wire.ask("GET", "/bucket/f", Range=f"bytes={SMALLEST_PART - 1}-")[1] == b"\0end"
    assert wire.status("POST", path, completion((1, first), (2, second))) == 404
    assert simulated_store.uploads() == []


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (lambda first, second: [(1, first), (2, second), (3, first)], b"InvalidPart"),
        (lambda first, second: [(1, second), (2, second)], b"InvalidPart"),
        (lambda first, second: [(2, second), (1, first)], b"InvalidPartOrder"),
        (lambda first, second: [], b"InvalidPartOrder"),
        (lambda first, second: [(1, first), (2, second)], b"EntityTooSmall"),
    ],
    ids=["missing", "of another tag", "not in order", "none", "too small"],
)
def test_an_upload_is_not_completed_without_its_parts(
    wire: Wire,
    simulated_store: SimulatedStore,
    wanted: Callable[[str, str], list[tuple[int, str]]],
    code: bytes,
) -> None:
    """Nothing appears, and the upload is still there to be given up."""
    upload = wire.begin("f")
    first, second = (send_part(wire, "f", upload, number, b"x") for number in (1, 2))
    path = f"/bucket/f?uploadId={upload}"
    status, body, _ = wire.ask("POST", path, completion(*wanted(first, second)))
    assert (status, code in body) == (400, True)
    assert simulated_store.objects() == {}
    assert wire.status("DELETE", path) == 204
    assert wire.status("DELETE", path) == 404


def test_uploads_under_way_are_listed_in_pages(wire: Wire, simulated_store: SimulatedStore) -> None:
    """Also several of one key."""
    for key in ("b", "a", "b", "c"):
        wire.begin(key)
    simulated_store.configure(Settings(page=1))
    found, marker = [], ""
    for _ in range(4):
        page = ET.fromstring(wire.ask("GET", f"/bucket?uploads{marker}")[1])
        found += [page.findtext("Upload/Key")]
        after, upload = (page.findtext(f"Next{n}Marker") for n in ("Key", "UploadId"))
        marker = f"&key-marker={after}&upload-id-marker={upload}"
    assert found == ["a", "b", "b", "c"]
    assert page.findtext("IsTruncated") == "false"


def test_conditions_of_a_put_hold(wire: Wire, simulated_store: SimulatedStore) -> None:
    """Only where there is none, only over one of this tag; unless the store passes them over."""
    created = {"If_None_Match": "*"}
    status, _, headers = wire.ask("PUT", "/bucket/m", b"1", **created)
    assert status == 200
    assert wire.status("PUT", "/bucket/m", b"2", **created) == 412
    assert wire.status("PUT", "/bucket/m", b"2", If_Match='"other"') == 412
    assert wire.status("PUT", "/bucket/none", b"2", If_Match=headers["ETag"]) == 404
    assert wire.status("PUT", "/bucket/m", b"3", If_Match=headers["ETag"]) == 200
    assert wire.status("PUT", "/bucket/m", b"4", If_Match=headers["ETag"]) == 412
    assert simulated_store.get("m") == b"3"
    simulated_store.configure(Settings(conditions=False))
    assert wire.status("PUT", "/bucket/m", b"5", **created) == 200


def test_of_many_who_create_an_object_one_wins(simulated_store: SimulatedStore) -> None:
    """However many connections there are."""
    barrier = threading.Barrier(8)

    def create(number: int) -> int:
        wire = Wire(simulated_store.endpoint)
        barrier.wait()
        try:
            return wire.status("PUT", "/bucket/m", b"%d" % number, If_None_Match="*")
        finally:
            wire.close()

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(create, range(8))) == [200, *[412] * 7]


def test_many_objects_are_deleted_by_one_request(
    wire: Wire, simulated_store: SimulatedStore
) -> None:
    """Also those that are not there."""
    for key in ("a&b", "c", "d"):
        simulated_store.put(key, b"1")
    body = b"<Delete><Object><Key>a&amp;b</Key></Object><Object><Key>d</Key></Object></Delete>"
    assert wire.status("POST", "/bucket?delete", body) == 200
    assert list(simulated_store.objects()) == ["c"]


def test_a_body_in_chunks_is_what_is_inside_of_them(
    wire: Wire, simulated_store: SimulatedStore
) -> None:
    """HTTP's chunks, and S3's with signatures or checksums."""
    chunks = b"3;chunk-signature=x\r\nabc\r\n2\r\nde\r\n0\r\nx-amz-checksum-crc32:x\r\n\r\n"
    wire.status("PUT", "/bucket/s3", chunks, Content_Encoding="aws-chunked")
    assert simulated_store.get("s3") == b"abcde"
    wire._connection.request("PUT", "/bucket/http", iter([b"abc", b"de"]), encode_chunked=True)
    assert wire._connection.getresponse().read() == b""
    assert simulated_store.get("http") == b"abcde"


def test_a_request_that_is_not_simulated_says_so(wire: Wire) -> None:
    """Nobody takes what is not known for done."""
    assert wire.status("DELETE", "/bucket") == 501
    assert wire.status("POST", "/bucket/f?uploadId=1", b"no xml") == 400
