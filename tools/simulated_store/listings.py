"""Listings of a simulated store, page by page. Touches nothing."""

from __future__ import annotations

from tools.simulated_store import xml
from tools.simulated_store.holdings import Holdings
from tools.simulated_store.requests import Request
from tools.simulated_store.settings import Settings


def objects(holdings: Holdings, request: Request, settings: Settings) -> bytes:
    """Return a page of the objects in a bucket (ListObjectsV2).

    Raises:
        RefusalError: There is no such bucket.
    """
    query = dict(request.query)
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("continuation-token") or query.get("start-after", "")
    most = min(int(query.get("max-keys", "1000")), settings.page)
    quoted = xml.quoting(query)
    entries: dict[str, str] = {}
    more = False
    for key, found in holdings.listed(request.bucket, prefix, settings.lag):
        begin, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        name = prefix + begin + cut if cut else key
        if name <= after or name in entries:
            continue
        if len(entries) == most:
            more = True
            break
        if cut:
            entries[name] = xml.element("CommonPrefixes", xml.text("Prefix", quoted(name)))
        else:
            entries[name] = xml.contents(quoted(key), found)
    last = list(entries)[-1] if entries else ""
    return xml.document(
        "ListBucketResult",
        xml.text("Name", request.bucket),
        xml.text("Prefix", quoted(prefix)),
        xml.text("Delimiter", quoted(delimiter)) if delimiter else "",
        xml.text("EncodingType", "url") if "encoding-type" in query else "",
        xml.text("MaxKeys", most),
        xml.text("KeyCount", len(entries)),
        xml.text("IsTruncated", str(more).lower()),
        xml.text("NextContinuationToken", last) if more else "",
        *entries.values(),
    )


def uploads(holdings: Holdings, request: Request, settings: Settings) -> bytes:
    """Return a page of the uploads that are under way (ListMultipartUploads).

    Raises:
        RefusalError: There is no such bucket.
    """
    query = dict(request.query)
    most = min(int(query.get("max-uploads", "1000")), settings.page)
    quoted = xml.quoting(query)
    found = holdings.uploads(request.bucket, query.get("prefix", ""))
    if "key-marker" in query:
        key, number = query["key-marker"], query.get("upload-id-marker", "")
        behind = (key, len(number), number)
        found = [u for u in found if (u.key, len(u.id), u.id) > behind]
    page = found[:most]
    more = len(found) > most
    return xml.document(
        "ListMultipartUploadsResult",
        xml.text("Bucket", request.bucket),
        xml.text("EncodingType", "url") if "encoding-type" in query else "",
        xml.text("IsTruncated", str(more).lower()),
        xml.text("NextKeyMarker", quoted(page[-1].key)) if more else "",
        xml.text("NextUploadIdMarker", page[-1].id) if more else "",
        *[xml.upload(quoted(u.key), u) for u in page],
    )
