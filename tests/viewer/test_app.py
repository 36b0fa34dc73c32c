"""The responses of the server; the browser side is tested in test_page.py."""

import asyncio
import re
import shutil
import socket

import numpy as np
import pytest

from gitseg_tf.data.volume import Volume
from gitseg_tf.labels import UWMGI, LabelSet
from gitseg_tf.viewer.catalog import Entry, Library, open_library
from gitseg_tf.viewer.contours import Contours, pack_groups
from gitseg_tf.viewer.middleware import Guard, is_loopback, own_names

SECRET = b"what nobody may read"


@pytest.fixture(scope="module")
def client(tiny_cohort, serve):
    with serve(open_library(tiny_cohort.root)) as client:
        yield client


def test_the_scan_list_shows_every_scan_and_label(client, tiny_cohort):
    found = client.get("/api/scans").json()
    assert [scan["id"] for scan in found["scans"]] == sorted(scan.id for scan in tiny_cohort.scans)
    assert [(label["name"], tuple(label["color"])) for label in found["labels"]] == [
        (la.name, la.color) for la in UWMGI
    ]
    assert all(scan["annotated"] and not scan["predicted"] and not scan["broken"] for scan in found["scans"])


def test_a_scan_has_its_geometry_and_gray_levels(client, tiny_cohort):
    scan = tiny_cohort["case5_day0"]
    found = client.get(f"/api/scans/{client.number_of(scan.id)}").json()
    assert found["numbers"] == scan.numbers and found["spacing"] == list(scan.spacing)
    assert found["planes"]["coronal"] == {"count": 48, "width": 40, "height": 10, "mm": [1.63, 3.0]}
    (channel,) = found["channels"]
    assert found["kind"] == "uint16" and channel["range"] == [scan.image.min(), scan.image.max()]
    assert channel["shades"] == [np.percentile(scan.image, p, method="inverted_cdf") for p in (1, 99.5)]


@pytest.mark.parametrize("scan_id", ["case1_day0", "case5_day0"])
def test_pictures_match_the_planes_of_image_and_masks(client, tiny_cohort, scan_id):
    scan, number = tiny_cohort[scan_id], client.number_of(scan_id)
    rows = np.array(scan.numbers) - 1
    for layer, volume, kind in (("image", scan.image, "<u2"), ("truth", pack_groups(scan.masks)[0], "u1")):
        whole = np.zeros((rows[-1] + 1, *volume.shape[1:]), volume.dtype)
        whole[rows] = volume
        for plane, index, expected in (
            ("axial", 3, volume[3]),
            ("coronal", 12, whole[:, 12]),
            ("sagittal", 20, whole[:, :, 20]),
        ):
            answer = client.get(f"/api/scans/{number}/{layer}/{plane}/{index}")
            np.testing.assert_array_equal(np.frombuffer(answer.content, kind).reshape(expected.shape), expected)


def test_labels_are_listed_per_slice(client, tiny_cohort):
    scan = tiny_cohort["case1_day0"]
    found = client.get(f"/api/scans/{client.number_of(scan.id)}/truth/labels").json()
    shown = scan.masks.any((2, 3))
    assert found["axial"] == [np.flatnonzero(shown[:, z]).tolist() for z in range(len(scan.numbers))]
    assert found["unannotated"] == []


@pytest.mark.parametrize(
    "address",
    [
        "/api/scans/9", "/api/scans/-1", "/api/scans/zero", "/api/scans/0/image/axial/8", "/api/scans/0/image/axial/-1",
        "/api/scans/0/image/oblique/1", "/api/scans/0/mask/axial/1", "/api/scans/0/prediction/axial/1",
        "/api/scans/1e0", "/docs", "/openapi.json", "/index.html", "/api", "/api/scans/",
    ],
)  # fmt: skip
def test_unknown_addresses_return_404(client, address):
    assert client.get(address).status == 404


def test_an_unreadable_scan_returns_the_reason(tiny_cohort, serve, tmp_path):
    root = shutil.copytree(tiny_cohort.root, tmp_path / "cohort")
    folder = root / "train/case1/case1_day0/scans"
    path = sorted(folder.iterdir())[0]
    path.write_bytes(b"")
    gone = sorted((root / "train/case1/case1_day5/scans").iterdir())[0]
    broken = sorted((root / "train/case2/case2_day0/scans").iterdir())[0]
    broken.rename(broken.with_name("slice_1.png"))
    library = open_library(root)
    gone.unlink()
    with serve(library) as client:
        for scan_id, name in (
            ("case1_day0", path),
            ("case1_day5", gone),
            ("case2_day0", broken.parent / "slice_1.png"),
        ):
            for address in ("", "/image/axial/0"):
                answer = client.get(f"/api/scans/{client.number_of(scan_id)}{address}")
                assert answer.status == 422 and str(name) in answer.json()["detail"]
        assert client.get(f"/api/scans/{client.number_of('case3_day0')}").status == 200


def test_scans_that_do_not_fit_into_the_cache_are_still_served(tiny_cohort, serve):
    def layers(client, number):
        answers = [client.get(f"/api/scans/{number}/{layer}/axial/4") for layer in ("image", "truth")]
        assert all(answer.status == 200 for answer in answers)
        return [answer.content for answer in answers]

    with serve(open_library(tiny_cohort.root), cache_bytes=1) as client:
        first, other, again = (layers(client, number) for number in (0, 1, 0))
    with serve(open_library(tiny_cohort.root)) as client:
        assert first == again == layers(client, 0) and first[0] != other[0]


def test_the_page_loads_only_its_own_files(client):
    page = client.get("/").content.decode()
    names = re.findall(r'(?:src|href)="([\w.]+)"', page)
    assert names[0] == "view.css" and len(names) == 7
    pages = {name: client.get(f"/{name}") for name in ("", *names)}
    assert [page.headers["content-type"].split(";")[0] for page in pages.values()] == [
        "text/html", "text/css", *["text/javascript"] * 6,
    ]  # fmt: skip
    assert not any(re.search(rb"https?://|[\"'(]//", page.content) for page in pages.values())
    assert "default-src 'self'" in pages[""].headers["content-security-policy"]


def many_labels(kind=np.int16, channels=1):
    """A library of one scan with 20 labels; label k is a column of slice k % 3, and the last one is unannotated."""
    labels, masks = LabelSet.of(*(f"part {k}" for k in range(20))), np.zeros((20, 3, 8, 30), bool)
    for k in range(19):
        masks[k, k % 3, :, k] = True
    annotated = np.arange(20) < 19
    voxels = np.arange(3 * 8 * 30 * channels).reshape(3, 8, 30, channels).astype(kind) - kind(1000)
    volume = Volume(voxels if channels > 1 else voxels[..., 0], (3.0, 1.5, 1.5), (1, 2, 4))
    entry = Entry("ct", "p1", lambda: volume, lambda: Contours(pack_groups(masks), annotated))
    return Library("drawn", (entry,), labels, ("ct", "pet")[:channels]), masks, volume


def test_more_than_eight_labels_are_sent_in_groups_of_eight(serve):
    library, masks, _ = many_labels()
    with serve(library) as client:
        assert [label["title"] for label in client.get("/api/scans").json()["labels"]] == list(library.labels.names)
        content = client.get("/api/scans/0/truth/axial/1").content
        bits = np.frombuffer(content, np.uint8).reshape(3, 8, 30)
        for k in range(20):
            np.testing.assert_array_equal(bits[k // 8] >> (k % 8) & 1, masks[k, 1])
        shown = client.get("/api/scans/0/truth/labels").json()
        assert shown["axial"][1] == [k for k in range(19) if k % 3 == 1] and shown["unannotated"] == [19]
        assert shown["sagittal"][7] == [7] and len(shown["coronal"]) == 8


@pytest.mark.parametrize(("kind", "sent"), [(np.int16, "<i2"), (np.int32, "<i2"), (np.float64, "<f4")])
def test_negative_and_fractional_intensities_are_sent_unchanged(serve, kind, sent):
    library, _, volume = many_labels(kind)
    with serve(library) as client:
        (channel,) = client.get("/api/scans/0").json()["channels"]
        assert channel["name"] == "ct" and channel["range"] == [-1000, -281]
        content = client.get("/api/scans/0/image/coronal/3").content
        picture = np.frombuffer(content, sent).reshape(4, 30)
        np.testing.assert_array_equal(picture[[0, 1, 3]], volume.voxels[:, 3])
        assert (picture[2] == -1000).all()  # the missing slice


def test_each_channel_is_served(serve):
    library, _, volume = many_labels(channels=2)
    with serve(library) as client:
        assert [channel["name"] for channel in client.get("/api/scans/0").json()["channels"]] == ["ct", "pet"]
        for c in (0, 1):
            content = client.get(f"/api/scans/0/image/axial/2?channel={c}").content
            np.testing.assert_array_equal(np.frombuffer(content, "<i2").reshape(8, 30), volume.voxels[2, ..., c])
        assert client.get("/api/scans/0/image/axial/2?channel=2").status == 404


# Access control


@pytest.fixture(scope="module")
def guarded(tiny_cohort, serve, tmp_path_factory):
    """A client, and a folder with the cohort and a secret inside and next to it."""
    root = tmp_path_factory.mktemp("guarded")
    shutil.copytree(tiny_cohort.root, root / "cohort")
    for folder in (root, root / "cohort"):
        (folder / "secret.txt").write_bytes(SECRET)
    with serve(open_library(root / "cohort")) as client:
        yield client, root


def spelled(path):
    """Spellings of a path that attempt path traversal."""
    up = "../" * 12
    yield from (f"/{path}", f"//{path}", "/../secret.txt", f"/{up}{path}", f"/view.css/../{up}{path}", path)
    yield from (f"/api/scans/{up}{path}", f"/api/scans/{path}", f"/api/scans/0/image/axial/{up}{path}")
    for dots in ("%2e%2e%2f", "%2e%2e/", "..%2f", "%252e%252e%252f", "..%5c", "..%c0%af", "....//", "%00../"):
        yield from (f"/{dots * 12}{path}", f"/api/scans/{dots * 12}{path}", f"/api/scans/0/truth/{dots * 12}{path}")
    yield from (f"/{path.replace('/', '%2f')}", f"/api/scans/%2f{path.replace('/', '%2f')}", f"file:///{path}")


@pytest.mark.parametrize("target", ["secret.txt", "cohort/secret.txt", "cohort/train.csv"])
def test_path_traversal_never_returns_a_file(guarded, target):
    client, root = guarded
    for address in spelled(str(root / target).lstrip("/")):
        answer = client.get(address)
        assert answer.status in (400, 404) and (root / target).read_bytes()[:16] not in answer.content


def test_a_path_in_the_query_is_ignored(guarded):
    client, root = guarded
    plain = client.get("/api/scans/0/image/axial/1").content
    assert client.get(f"/api/scans/0/image/axial/1?path={root}/secret.txt").content == plain


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "LOOK"])
def test_methods_other_than_get_are_refused(client, method):
    for address in ("/", "/api/scans", "/nowhere"):
        assert client.get(address, method).status == 405


@pytest.mark.parametrize("host", ["localhost:8750", "127.0.0.1", "127.0.0.1:1", "[::1]:8750", "LOCALHOST"])
def test_a_request_for_this_machine_is_answered(client, host):
    assert client.get("/api/scans", hosts=[host]).status == 200


@pytest.mark.parametrize(
    "hosts",
    [
        ["evil.example"], ["evil.example:8750"], ["localhost.evil.example"], ["127.0.0.1.evil.example"],
        ["192.168.0.7"], ["evil@localhost"], [""], ["localhost", "evil.example"], ["evil.example", "localhost"], [],
    ],
)  # fmt: skip
def test_a_request_for_another_host_is_refused(client, hosts):
    answer = client.get("/api/scans", hosts=hosts)
    assert answer.status in (400, 421) and b"case1_day0" not in answer.content


@pytest.mark.parametrize("hosts", [[b"localhost", b"evil.example"], [b"evil.example", b"localhost"], []])
def test_duplicate_or_missing_host_headers_are_refused(hosts):
    sent = []

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        raise AssertionError("was let through")

    scope = {"type": "http", "method": "GET", "headers": [(b"host", host) for host in hosts]}
    asyncio.run(Guard(app, own_names("127.0.0.1"))(scope, None, send))
    assert sent[0]["status"] == 421


def test_a_server_on_all_interfaces_accepts_any_address_and_its_host_name():
    serves = own_names("0.0.0.0")
    assert all(map(serves, ("192.168.0.7:8750", "localhost", "[fe80::1]:8750", socket.gethostname())))
    assert not any(map(serves, ("evil.example", "evil.example:8750", "")))
    assert own_names("scans.clinic")("scans.clinic:8750") and not own_names("scans.clinic")("evil.example")


def test_loopback_addresses_are_recognized():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.7", "scans.clinic", "localhost.evil.example")))
