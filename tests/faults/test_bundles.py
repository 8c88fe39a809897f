"""Bundles that are damaged, hostile, or of another run: refused whole, by what is said."""

import io
import json
import os
import shutil
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fuzzing import damaged, ends, fuzz
from hypothesis import given
from hypothesis import strategies as st

from labkit.bundles import MANIFEST, take_bundle, write_bundle
from labkit.commands import catch_up as catch_up_command
from labkit.commands import main, setup
from labkit.course import LABS
from labkit.errors import LabError
from labkit.figures import Estimate
from labkit.products import Products, folder_lock
from labkit.profiles import resolve_profile
from labkit.session import Lab

FOLDERS = {"base", "awq", "awq-dense", "lora", "lora-tone", "onnx", "onnx-baked"}


def run_labs(last: str = "06", text: str = "") -> Products:
    """What the labs up to *last* have made, in a few bytes each, through the labs' own store."""
    for number, entry in LABS.items():
        if number > last:
            break
        lab = Lab(number, resolve_profile())
        for name in entry.makes:
            if name.endswith("train.jsonl"):
                lab.write(name, f"{name} {text}")
                continue
            needs = [need for need in entry.needs if need in FOLDERS]

            def build(_, out, name=name):
                if name in FOLDERS:
                    (out / "deep").mkdir(parents=True)
                    (out / "deep" / "weights.bin").write_bytes(os.urandom(2000))
                    (out / "config.json").write_text(name)
                else:
                    out.write_text(f"of {name}")

            lab.keep(name, build, {"of": name}, needs=needs)
    return lab.products


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A function that takes the test to the run folder of somebody else."""
    for name in ("LAB_PROFILE", "LAB_MODEL", "LAB_DATA", "LAB_STEPS", "LAB_LOCK_HELD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(setup, "enter", lambda *_, **__: None)

    def of(who: str) -> Path:
        monkeypatch.setenv("LAB_RUNS", str(tmp_path / who))
        return tmp_path / who / "cpu"

    return of


@pytest.fixture(scope="module")
def instructor(tmp_path_factory):
    """A run folder with the six labs, which no test changes, and its bundle."""
    folder = tmp_path_factory.mktemp("instructor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_RUNS", str(folder))
        write_bundle(run_labs(), resolve_profile(), folder / "bundle.tar")
    return folder


@pytest.fixture
def bundle(instructor, runs, tmp_path):
    """The bundle of an instructor; the test is in the folder of an attendee."""
    runs("attendee")
    return Path(shutil.copy(instructor / "bundle.tar", tmp_path))


def catch_up(bundle, number="04", **how):
    profile = resolve_profile()
    lab = Lab(number, profile)
    with folder_lock(lab.folder):
        return take_bundle(bundle, number, lab.products, profile, **how)


def members(bundle: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(bundle) as tar:
        return [(one, tar.extractfile(one).read()) for one in tar]


def write(bundle: Path, parts) -> None:
    with tarfile.open(bundle, "w") as tar:
        for one, data in parts:
            one.size = len(data) if one.isreg() else 0
            tar.addfile(one, io.BytesIO(data))


# ---- what works


def test_an_attendee_goes_on_where_the_instructor_is(bundle, runs):
    taken = catch_up(bundle)
    assert {stamp.lab for stamp in taken} == {"01", "02", "03"}
    lab = Lab("04", resolve_profile())
    for name in LABS["04"].needs:
        assert lab.path(name).exists()
    built = lab.keep("onnx", lambda _, out: out.mkdir() or (out / "a").touch(), needs=["lora"])
    assert built.is_dir()
    assert lab.products.stamp("lora").machine and not (lab.folder / ".catch-up").exists()


def test_a_figure_counts_where_its_products_came_in_a_bundle(runs, tmp_path):
    """Also one that was measured on a product that no later lab reads."""
    runs("instructor")
    run_labs()
    lab = Lab("04", resolve_profile())
    lab.path("merged")
    lab.record("harm", merged=Estimate(0.5, unit="nats"))
    write_bundle(lab.products, resolve_profile(), tmp_path / "b.tar")
    runs("attendee")
    catch_up(tmp_path / "b.tar", "05")
    assert Lab("05", resolve_profile()).figure("harm", "merged").mean == 0.5


def test_a_bundle_ends_before_the_lab_that_is_not_finished(runs, tmp_path):
    runs("instructor")
    write_bundle(run_labs(last="02"), resolve_profile(), tmp_path / "b.tar")
    runs("attendee")
    assert catch_up(tmp_path / "b.tar", "03")
    with pytest.raises(LabError, match="has no lora of lab 03"):
        catch_up(tmp_path / "b.tar", "04")


def test_what_was_altered_is_not_packed(runs, tmp_path):
    folder = runs("instructor")
    products = run_labs()
    (folder / "awq" / "config.json").write_text("edited")
    with pytest.raises(LabError, match="lab 02 is not finished: awq was altered"):
        write_bundle(products, resolve_profile(), tmp_path / "b.tar")
    assert not list(tmp_path.glob("*b.tar*"))


def test_nothing_to_pack_is_said(runs, capsys):
    runs("instructor")
    assert main(["bundle"]) == 1
    assert "nothing to pack yet" in capsys.readouterr().err


def test_the_two_commands(runs, instructor, capsys):
    folder = runs("instructor")
    shutil.copytree(instructor / "cpu", folder)
    assert main(["bundle"]) == 0
    said = capsys.readouterr().out
    mark = said.split("--fingerprint ")[1].split()[0]
    runs("attendee")
    command = ["catch-up", "5", "--from", str(folder / "bundle.tar"), "--fingerprint"]
    assert main([*command, "0" * 16]) == 1
    assert f"its fingerprint is {mark}, not 0000" in capsys.readouterr().err
    assert main([*command, mark]) == 0
    assert "Go on with notebooks/05_infer.ipynb" in capsys.readouterr().out
    assert Lab("05", resolve_profile()).path("onnx")


def test_what_was_made_in_the_same_way_is_replaced_and_what_was_not_is_kept(bundle, runs):
    folder = runs("early")
    run_labs(last="02")
    catch_up(bundle)
    folder = runs("other data")
    products = run_labs(last="02", text="of my own")
    before = products.identity("train.jsonl")
    with pytest.raises(LabError, match=r"train.jsonl .* was made in another way .*--replace"):
        catch_up(bundle)
    assert Products(folder).identity("train.jsonl") == before and Products(folder).is_current(
        "awq"
    )
    catch_up(bundle, replace=True)
    assert Products(folder).identity("train.jsonl") != before and Products(folder).is_current(
        "lora"
    )


def test_what_was_edited_by_hand_is_kept(bundle, runs):
    folder = runs("editor")
    run_labs(last="01")
    (folder / "train.jsonl").write_text("edited")
    with pytest.raises(LabError, match=r"train.jsonl .* was edited after it was made"):
        catch_up(bundle)
    assert (folder / "train.jsonl").read_text() == "edited"
    assert catch_up(bundle, replace=True)


def test_a_second_call_leaves_the_first_alone(bundle, runs, capsys):
    folder = runs("attendee")
    (folder / ".catch-up").mkdir(parents=True)
    (folder / ".labkit").touch()
    with folder_lock(folder):
        assert main(["catch-up", "04", "--from", str(bundle)]) == 1
    assert "another run is writing" in capsys.readouterr().err
    assert (folder / ".catch-up").is_dir()


def test_nothing_is_written_through_a_link(bundle, runs, tmp_path):
    folder = runs("attendee")
    (tmp_path / "theirs").mkdir()
    folder.mkdir(parents=True)
    (folder / ".labkit").touch()
    (folder / "records").symlink_to(tmp_path / "theirs")
    catch_up(bundle)
    assert not list((tmp_path / "theirs").iterdir())


def test_a_product_that_cannot_be_moved_in_leaves_the_old_one(runs):
    runs("attendee")
    products = run_labs(last="01")
    with pytest.raises(FileNotFoundError):
        products.take(products.stamp("base"), products.folder / "gone")
    assert products.is_current("base", hashed=True)


@pytest.mark.parametrize("out", ["train.jsonl", "..", "nowhere/b.tar"])
def test_a_place_that_is_no_place_for_a_bundle(runs, out, capsys):
    folder = runs("instructor")
    run_labs(last="01")
    before = (folder / "train.jsonl").read_text()
    assert main(["bundle", "--out", str(folder / out)]) == 1
    assert "cannot be the bundle" in capsys.readouterr().err
    assert (folder / "train.jsonl").read_text() == before


def test_another_third_number_of_python_is_the_same_python(bundle, runs):
    def older(told):
        for stamp in told["stamps"]:
            stamp["decided_by"]["versions"]["python"] += "9"

    write(bundle, manifest_with(older)(members(bundle)))
    assert catch_up(bundle)


def test_a_folder_at_work_is_left_alone(bundle, runs):
    with folder_lock(runs("attendee")), pytest.raises(LabError, match="another run is writing"):
        catch_up(bundle)


# ---- what is refused


def manifest_with(change):
    """Hostile bundles: the manifest as *change* leaves it."""

    def make(parts):
        told = json.loads(parts[0][1])
        change(told)
        return [(parts[0][0], json.dumps(told).encode()), *parts[1:]]

    return make


def named(name, kind=tarfile.REGTYPE, link=""):
    one = tarfile.TarInfo(name)
    one.type, one.linkname = kind, link
    return one


def first_stamp(**values):
    return manifest_with(lambda told: told["stamps"][0].update(values))


def flipped(parts):
    one, data = parts[3]
    return [*parts[:3], (one, bytes([data[0] ^ 1]) + data[1:]), *parts[4:]]


def sparse(parts):
    one = named(parts[1][0].name)
    one.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    one.pax_headers |= {"GNU.sparse.realsize": str(10**15), "GNU.sparse.name": one.name}
    return [parts[0], (one, b"0\n" + bytes(510)), *parts[2:]]


MARK = {"bytes": 1, "sha256": "0", "seen": [0, 0, 0]}


def raw(kind: bytes, data: bytes) -> bytes:
    """A member as it stands in the archive, of any kind."""
    one = tarfile.TarInfo("x")
    one.type, one.size = kind, len(data)
    block = one.tobuf(tarfile.USTAR_FORMAT)
    return block + data + bytes(-len(data) % 512)


def extended(parts) -> bytes:
    return raw(tarfile.XHDTYPE, b"1" * 10**6)  # for which Python 3.11.7 takes minutes


def long_names(count: int, size: int) -> bytes:
    return raw(tarfile.GNUTYPE_LONGNAME, b"x" * size) * count


def file_mark(parts, name, product=0):
    def change(told):
        files = told["stamps"][product]["files"]
        files[name] = files.pop(next(iter(files)))

    return manifest_with(change)(parts)


HOSTILE = {
    "no archive": (lambda parts: b"not a tar" * 100, "cannot be read"),
    "empty": (lambda parts: b"", "cannot be read"),
    "no manifest": (lambda parts: parts[1:], "does not begin with a manifest"),
    "a manifest that is a link": (
        lambda parts: [(named(MANIFEST, tarfile.SYMTYPE, "/etc/passwd"), b"")],
        "does not begin with a manifest",
    ),
    "a manifest of another program": (
        lambda parts: [(parts[0][0], b'{"version": 2}'), *parts[1:]],
        "not one of these labs",
    ),
    "a million brackets": (
        lambda parts: [(parts[0][0], b"[" * 10**6), *parts[1:]],
        "not one of these labs",
    ),
    "one flipped byte": (flipped, "content of .* is not what its manifest says"),
    "a file that is missing": (lambda parts: [*parts[:2], *parts[3:]], "it ends before"),
    "a file twice": (lambda parts: [*parts[:2], *parts[1:]], "there twice"),
    "a file too many": (
        lambda parts: [parts[0], (named("base/more"), b"x"), *parts[1:]],
        "base/more is not what its manifest says",
    ),
    "a way out": (
        lambda parts: [parts[0], (named("../../escaped"), b"x"), *parts[1:]],
        "escaped is not what its manifest says",
    ),
    "an absolute name": (
        lambda parts: [parts[0], (named("/tmp/escaped"), b"x"), *parts[1:]],
        "escaped is not what its manifest says",
    ),
    "a link in a file's place": (
        lambda parts: [parts[0], (named(parts[1][0].name, tarfile.SYMTYPE, "/"), b""), *parts[2:]],
        "is not what its manifest says",
    ),
    "a hard link": (
        lambda parts: [parts[0], (named(parts[1][0].name, tarfile.LNKTYPE, "x"), b""), *parts[2:]],
        "is not what its manifest says",
    ),
    "a device": (
        lambda parts: [parts[0], (named(parts[1][0].name, tarfile.CHRTYPE), b""), *parts[2:]],
        "is not what its manifest says",
    ),
    "a pipe": (
        lambda parts: [parts[0], (named(parts[1][0].name, tarfile.FIFOTYPE), b""), *parts[2:]],
        "is not what its manifest says",
    ),
    "a sparse file of a petabyte": (sparse, "a header of another kind"),
    "a way out that the manifest names": (
        lambda parts: file_mark(parts, "../../../escaped"),
        "a name that leads elsewhere",
    ),
    "an absolute name that the manifest names": (
        lambda parts: file_mark(parts, "/tmp/escaped"),
        "a name that leads elsewhere",
    ),
    "a hidden file": (lambda parts: file_mark(parts, ".bashrc"), "a name that leads elsewhere"),
    "a product of no lab": (first_stamp(name=".ssh"), "lab 01 makes no"),
    "a product of another lab": (first_stamp(lab="02"), "lab 02 makes no"),
    "a record that leads elsewhere": (
        manifest_with(lambda told: told["records"].update({"../x": {"peak_rss_mb": "x"}})),
        "not one of these labs",
    ),
    "a million files": (
        manifest_with(
            lambda told: told["stamps"][0].update(
                files={
                    f"f{i}": next(iter(told["stamps"][0]["files"].values())) for i in range(10**5)
                }
            )
        ),
        "too many files|does not begin",
    ),
    "another version": (
        manifest_with(
            lambda told: told["stamps"][0]["decided_by"]["versions"].update({"torch": "1.0"})
        ),
        r"other versions \(versions.torch was \"1.0\"",
    ),
    "another model": (first_stamp(origin=["some/model", "0"]), "made from the model .*some/model"),
    "a file that is a folder of another": (
        manifest_with(
            lambda told: told["stamps"][0]["files"].update(
                {"a": MARK, "a/b": MARK},
            )
        ),
        "a name that leads elsewhere",
    ),
    "an extended header": (extended, "a header of another kind"),
    "a long name of a megabyte": (lambda parts: long_names(1, 2**20), "a header of another kind"),
    "headers without end": (lambda parts: long_names(3000, 200), "cannot be read"),
    "another profile": (
        manifest_with(lambda told: told.update(profile="gpu")),
        "of the profile gpu",
    ),
    "products that do not belong together": (
        manifest_with(
            lambda told: next(one for one in told["stamps"] if one["name"] == "base").update(
                id="x"
            )
        ),
        "was made from another base",
    ),
    "a product twice": (
        manifest_with(lambda told: told["stamps"].append(told["stamps"][0])),
        "a product twice",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_bundle_is_refused_whole(bundle, runs, tmp_path, kind):
    make, said = HOSTILE[kind]
    made = make(members(bundle))
    if isinstance(made, bytes):
        bundle.write_bytes(made)
    else:
        write(bundle, made)
    folder = runs("attendee")
    run_labs(last="01")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    outside = sorted(path for path in tmp_path.iterdir())
    with pytest.raises(LabError, match=said), ends():
        catch_up(bundle)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert outside == sorted(tmp_path.iterdir()) and not Path("/tmp/escaped").exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_bundle_is_refused_whole(bundle, runs, share):
    whole = bundle.read_bytes()
    end = whole.rstrip(b"\0")
    bundle.write_bytes(whole[: int(len(end) * share)])
    with pytest.raises(LabError, match="refused, and nothing of it was kept"):
        catch_up(bundle, "06")
    assert not Products(runs("attendee")).stamps()


def test_a_record_by_another_name_is_not_written(bundle, runs, tmp_path):
    make = manifest_with(lambda told: told["records"].update({"../../x": {}}))
    write(bundle, make(members(bundle)))
    catch_up(bundle)
    assert not list(tmp_path.rglob("x.json"))


def test_a_full_disk_keeps_nothing_half_done(bundle, runs, monkeypatch):
    monkeypatch.setattr("builtins.open", _full(open))
    with pytest.raises(OSError, match="No space left"):
        catch_up(bundle)
    monkeypatch.undo()
    assert not (runs("attendee") / ".catch-up").exists()


def _full(before):
    def opened(path, mode="r", *rest, **more):
        if mode == "xb" and str(path).endswith("config.json"):
            raise OSError(28, "No space left on device", str(path))
        return before(path, mode, *rest, **more)

    return opened


@fuzz(60)
@given(st.data())
def test_any_bytes_end_in_one_error_or_a_result(fuzzed, data):
    bundle, whole = fuzzed
    bundle.write_bytes(data.draw(damaged([whole])))
    with ends():
        try:
            catch_up(bundle)
        except LabError:
            assert not list(bundle.parent.rglob(".catch-up"))


@pytest.fixture
def fuzzed(bundle):
    return bundle, bundle.read_bytes()


# ---- a download


class Web(BaseHTTPRequestHandler):
    """A server of one file, which breaks off after *most* bytes of an answer."""

    data, most, ranges, asked = b"", 10**9, True, []

    def do_GET(self):
        first = int(self.headers["Range"].split("=")[1].rstrip("-")) if self.ranges else 0
        self.asked.append(first)
        if first >= len(self.data):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if self.ranges and first else 200)
        self.send_header("Content-Length", str(len(self.data) - first))
        self.end_headers()
        self.wfile.write(self.data[first : first + self.most])
        if len(self.data) - first > self.most:
            self.connection.close()

    def log_message(self, *_):
        pass


@pytest.fixture
def web(bundle, monkeypatch):
    handler = type("MyWeb", (Web,), {"data": bundle.read_bytes(), "asked": []})
    monkeypatch.setattr(catch_up_command, "CHUNK", 512)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.address = f"http://127.0.0.1:{server.server_port}/bundle.tar"
    yield handler
    server.shutdown()


def test_a_download_goes_on_where_it_broke_off(web, runs, capsys):
    web.most = len(web.data) // 3 + 1
    assert main(["catch-up", "04", "--from", web.address]) == 0
    assert len(web.asked) >= 3 and web.asked == sorted(web.asked)
    assert Lab("04", resolve_profile()).path("lora")
    assert not list(runs("attendee").glob(".catch-up*"))


def test_a_download_that_never_ends_well_is_one_sentence_and_goes_on_later(web, runs, capsys):
    web.most = 3000
    assert main(["catch-up", "04", "--from", web.address]) == 1
    assert "could not be fetched (the connection broke off). Run" in capsys.readouterr().err
    had = max(web.asked)
    web.most = 10**9
    assert main(["catch-up", "04", "--from", web.address]) == 0
    assert web.asked[-1] >= had > 0


def test_a_server_that_knows_no_ranges_is_asked_from_the_start(web, runs):
    part = runs("attendee")
    web.ranges = False
    assert main(["catch-up", "04", "--from", web.address]) == 0
    assert Products(part).is_current("lora")


def test_a_download_is_not_written_through_a_link(web, runs, tmp_path):
    folder = runs("attendee")
    web.most = 3000
    assert main(["catch-up", "04", "--from", web.address]) == 1
    (part,) = folder.glob(".catch-up-*.part")
    part.unlink()
    (tmp_path / "thesis").write_text("mine")
    part.symlink_to(tmp_path / "thesis")
    web.most = 10**9
    assert main(["catch-up", "04", "--from", web.address]) == 0
    assert (tmp_path / "thesis").read_text() == "mine"


def test_what_is_too_large_for_a_signature_is_not_fetched(web, runs):
    folder = runs("attendee")
    with pytest.raises(LabError, match="the signature was not fetched"):
        catch_up_command._found(web.address, folder, most=len(web.data) - 1)
    assert not list(folder.glob(".catch-up*"))


def test_an_empty_file_on_a_server_is_said(web, runs, capsys):
    web.data = b""
    assert main(["catch-up", "04", "--from", web.address]) == 1
    assert "the server answers 416" in capsys.readouterr().err


def test_a_damaged_download_is_fetched_anew(web, runs, capsys):
    whole, web.data = web.data, web.data[:5000] + bytes(100) + web.data[5100:]
    assert main(["catch-up", "04", "--from", web.address]) == 1
    assert "refused" in capsys.readouterr().err
    web.data = whole
    assert main(["catch-up", "04", "--from", web.address]) == 0


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://" + "x" * 70 + ".com/b.tar", "no address that leads to a file"),
        ("HTTP://[/b.tar", "no address that leads to a file"),
        ("~nosuchuser/b.tar", "there is no file ~nosuchuser"),
        ("http://127.0.0.1:9/b.tar", "refuses the connection"),
        ("/nowhere/b.tar", "there is no file /nowhere/b.tar"),
    ],
)
def test_an_address_that_is_wrong(runs, address, said, capsys):
    runs("attendee")
    assert main(["catch-up", "04", "--from", address]) == 1
    assert said in capsys.readouterr().err
