"""What the server answers, by its addresses; the browser's part is in test_page.py."""

import asyncio
import re
import shutil
import socket

import numpy as np
import pytest

from gitseg_tf.data.records import pack_masks
from gitseg_tf.data.scans import ORGAN_COLORS
from gitseg_tf.viewer.guard import Guard, is_loopback, own_names
from gitseg_tf.viewer.library import open_library

SECRET = b"what nobody may read"


@pytest.fixture(scope="module")
def client(drawn, serve):
    with serve(open_library(drawn.root)) as client:
        yield client


def test_the_list_says_what_there_is(client, drawn):
    found = client.get("/api/scans").json()
    assert [scan["id"] for scan in found["scans"]] == sorted(scan.id for scan in drawn.scans)
    assert {organ["name"]: tuple(organ["color"]) for organ in found["organs"]} == ORGAN_COLORS
    assert all(scan["labelled"] and not scan["predicted"] and not scan["broken"] for scan in found["scans"])


def test_a_scan_has_its_geometry_and_greys(client, drawn):
    scan = drawn["case5_day0"]
    found = client.get(f"/api/scans/{client.number_of(scan.id)}").json()
    assert found["numbers"] == scan.numbers and found["spacing"] == list(scan.spacing)
    assert found["planes"]["coronal"] == {"count": 48, "width": 40, "height": 10, "mm": [1.63, 3.0]}
    assert found["range"] == [scan.image.min(), scan.image.max()]
    assert found["shades"] == [np.percentile(scan.image, p, method="inverted_cdf") for p in (1, 99.5)]


@pytest.mark.parametrize("scan_id", ["case1_day0", "case5_day0"])
def test_pictures_are_the_planes_of_image_and_contours(client, drawn, scan_id):
    scan, number = drawn[scan_id], client.number_of(scan_id)
    rows = np.array(scan.numbers) - 1
    for layer, volume, kind in (("image", scan.image, "<u2"), ("truth", pack_masks(scan.masks), "u1")):
        whole = np.zeros((rows[-1] + 1, *volume.shape[1:]), volume.dtype)
        whole[rows] = volume
        for plane, index, expected in (
            ("axial", 3, volume[3]),
            ("coronal", 12, whole[:, 12]),
            ("sagittal", 20, whole[:, :, 20]),
        ):
            answer = client.get(f"/api/scans/{number}/{layer}/{plane}/{index}")
            np.testing.assert_array_equal(np.frombuffer(answer.content, kind).reshape(expected.shape), expected)


def test_the_organs_along_the_scan(client, drawn):
    scan = drawn["case1_day0"]
    found = client.get(f"/api/scans/{client.number_of(scan.id)}/truth/organs").json()
    shown = scan.masks.any((2, 3))
    assert found["axial"] == [sum(1 << k for k in range(3) if shown[k, z]) for z in range(len(scan.numbers))]


@pytest.mark.parametrize(
    "address",
    [
        "/api/scans/9", "/api/scans/-1", "/api/scans/zero", "/api/scans/0/image/axial/8", "/api/scans/0/image/axial/-1",
        "/api/scans/0/image/oblique/1", "/api/scans/0/mask/axial/1", "/api/scans/0/prediction/axial/1",
        "/api/scans/1e0", "/docs", "/openapi.json", "/index.html", "/api", "/api/scans/",
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_found(client, address):
    assert client.get(address).status == 404


def test_a_scan_that_cannot_be_read_says_why(drawn, serve, tmp_path):
    root = shutil.copytree(drawn.root, tmp_path / "cohort")
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


def test_whatever_does_not_fit_into_memory_is_read_again(drawn, serve):
    with serve(open_library(drawn.root), cache_bytes=1) as client:
        for number in (0, 1, 0):
            for layer in ("image", "truth"):
                assert client.get(f"/api/scans/{number}/{layer}/axial/1").status == 200


def test_the_page_is_of_three_files_and_asks_nobody_else(client):
    names = ("/", "/view.css", "/view.js")
    pages = {name: client.get(name) for name in names}
    assert [page.headers["content-type"].split(";")[0] for page in pages.values()] == [
        "text/html", "text/css", "text/javascript",
    ]  # fmt: skip
    assert not any(re.search(rb"https?://|[\"'(]//", page.content) for page in pages.values())
    assert "default-src 'self'" in pages["/"].headers["content-security-policy"]


# Who may ask, and for what


@pytest.fixture(scope="module")
def guarded(drawn, serve, tmp_path_factory):
    """A client, and a folder that holds the cohort and, in it and beside it, a secret."""
    place = tmp_path_factory.mktemp("guarded")
    shutil.copytree(drawn.root, place / "cohort")
    for folder in (place, place / "cohort"):
        (folder / "secret.txt").write_bytes(SECRET)
    with serve(open_library(place / "cohort")) as client:
        yield client, place


def spelled(path):
    """A path as those write it who look for a way out."""
    up = "../" * 12
    yield from (f"/{path}", f"//{path}", "/../secret.txt", f"/{up}{path}", f"/view.css/../{up}{path}", path)
    yield from (f"/api/scans/{up}{path}", f"/api/scans/{path}", f"/api/scans/0/image/axial/{up}{path}")
    for dots in ("%2e%2e%2f", "%2e%2e/", "..%2f", "%252e%252e%252f", "..%5c", "..%c0%af", "....//", "%00../"):
        yield from (f"/{dots * 12}{path}", f"/api/scans/{dots * 12}{path}", f"/api/scans/0/truth/{dots * 12}{path}")
    yield from (f"/{path.replace('/', '%2f')}", f"/api/scans/%2f{path.replace('/', '%2f')}", f"file:///{path}")


@pytest.mark.parametrize("target", ["secret.txt", "cohort/secret.txt", "cohort/train.csv"])
def test_no_spelling_of_a_path_leads_to_a_file(guarded, target):
    client, place = guarded
    for address in spelled(str(place / target).lstrip("/")):
        answer = client.get(address)
        assert answer.status in (400, 404) and (place / target).read_bytes()[:16] not in answer.content


def test_a_path_in_a_query_is_nothing(guarded):
    client, place = guarded
    plain = client.get("/api/scans/0/image/axial/1").content
    assert client.get(f"/api/scans/0/image/axial/1?path={place}/secret.txt").content == plain


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "LOOK"])
def test_other_methods_than_get_are_refused(client, method):
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
def test_of_two_hosts_none_is_believed_whatever_the_parser_lets_through(hosts):
    sent = []

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        raise AssertionError("was let through")

    scope = {"type": "http", "method": "GET", "headers": [(b"host", host) for host in hosts]}
    asyncio.run(Guard(app, own_names("127.0.0.1"))(scope, None, send))
    assert sent[0]["status"] == 421


def test_of_all_networks_any_address_and_the_machines_name_are_its_own():
    serves = own_names("0.0.0.0")
    assert all(map(serves, ("192.168.0.7:8750", "localhost", "[fe80::1]:8750", socket.gethostname())))
    assert not any(map(serves, ("evil.example", "evil.example:8750", "")))
    assert own_names("scans.clinic")("scans.clinic:8750") and not own_names("scans.clinic")("evil.example")


def test_which_addresses_are_this_machine_alone():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.7", "scans.clinic", "localhost.evil.example")))
