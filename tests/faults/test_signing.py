"""Signed folders and bundles: whatever was altered is refused, and by what is said."""

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec
from test_bundles import bundle, instructor, runs  # noqa: F401

from labkit.commands import main
from labkit.errors import LabError
from labkit.extras import extra_packages
from labkit.signing import check_signature, sign, signature_of


@pytest.fixture(scope="module", autouse=True)
def installed():
    try:
        extra_packages("sign")
    except LabError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two pairs of keys: (private, public) of "mine" and of "other"."""
    folder, found = tmp_path_factory.mktemp("keys"), {}
    for name in ("mine", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
        private.write_bytes(
            key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
        )
        public.write_bytes(
            key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
        )
        found[name] = private, public
    return found


@pytest.fixture(scope="module")
def original(keys, tmp_path_factory):
    """(a signed folder, its signature), which no test changes."""
    folder = tmp_path_factory.mktemp("signed") / "package"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(bytes(range(256)) * 40)
    (folder / "travel.onnx_adapter").write_bytes(b"travel" * 100)
    signature = folder.with_name("package.sig")
    sign(folder, keys["mine"][0], signature)
    return folder, signature


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


ALTERED = {
    "one flipped byte": lambda folder: flip(folder / "model.onnx"),
    "a swapped adapter": lambda folder: (folder / "travel.onnx_adapter").write_bytes(
        b"tone  " * 100
    ),
    "an extra file": lambda folder: (folder / "ops.so").write_bytes(b"code"),
    "an extra file of git's": lambda folder: (folder / ".gitattributes").write_text("* filter=x"),
    "a file in a folder of git's": lambda folder: [
        (folder / ".git").mkdir(),
        (folder / ".git" / "config").write_text("[core]"),
    ],
    "a missing file": lambda folder: (folder / "model.onnx").unlink(),
    "a renamed file": lambda folder: (folder / "model.onnx").rename(folder / "model2.onnx"),
    "a link": lambda folder: (folder / "more").symlink_to("/etc/hostname"),
}


@pytest.mark.parametrize("what", ALTERED)
def test_what_was_altered_is_refused(what, original, keys, tmp_path):
    folder = tmp_path / "package"
    shutil.copytree(original[0], folder)
    ALTERED[what](folder)
    with pytest.raises(LabError, match="is not what the owner of .* has signed"):
        check_signature(folder, keys["mine"][1], original[1])


def test_what_was_not_altered_is_taken_wherever_it_lies(original, keys, tmp_path):
    shutil.copytree(original[0], tmp_path / "elsewhere")
    check_signature(tmp_path / "elsewhere", keys["mine"][1], original[1])


@pytest.mark.parametrize("text", [None, "{}", "[" * 5000])
def test_a_signature_that_is_none_is_refused(text, original, keys, tmp_path):
    signature = tmp_path / "some.sig"
    if text is not None:
        signature.write_text(text)
    with pytest.raises(LabError, match="is not what the owner of"):
        check_signature(original[0], keys["mine"][1], signature)


def test_a_wrong_key_is_refused(original, keys, tmp_path):
    with pytest.raises(LabError, match="is not what the owner of"):
        check_signature(original[0], keys["other"][1], original[1])
    (tmp_path / "no.pem").write_text("no key")
    with pytest.raises(LabError, match="was not signed"):
        sign(original[0], tmp_path / "no.pem", tmp_path / "some.sig")


def test_no_module_beside_a_bundle_is_run(original, keys, tmp_path, monkeypatch):
    (tmp_path / "model_signing.py").write_text("print('verified')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError, match="is not what the owner of"):
        check_signature(original[0], keys["other"][1], original[1])


# ---- a signed bundle


def catch_up(bundle, public, capsys):  # noqa: F811
    status = main(["catch-up", "04", "--from", str(bundle), "--key", str(public)])
    return status, capsys.readouterr()


@pytest.fixture
def signed(bundle, keys):  # noqa: F811
    sign(bundle, keys["mine"][0], signature_of(bundle))
    return bundle


def test_a_signed_bundle_is_taken(signed, keys, capsys):
    status, said = catch_up(signed, keys["mine"][1], capsys)
    assert status == 0, said.err
    assert "Go on with notebooks/04_optimize.ipynb" in said.out


def test_a_bundle_that_another_has_signed_is_refused_before_it_is_read(signed, keys, capsys):
    status, said = catch_up(signed, keys["other"][1], capsys)
    assert status == 1 and "is not what the owner of" in said.err


def test_a_bundle_that_was_altered_after_it_was_signed_is_refused(signed, keys, capsys):
    flip(signed)
    status, said = catch_up(signed, keys["mine"][1], capsys)
    assert status == 1 and "is not what the owner of" in said.err


def test_a_bundle_without_its_signature_is_refused(bundle, keys, capsys):  # noqa: F811
    status, said = catch_up(bundle, keys["mine"][1], capsys)
    assert status == 1 and "bundle.tar.sig" in said.err


def test_the_signature_of_a_signed_address_is_asked_with_its_query(bundle, keys, monkeypatch):  # noqa: F811
    asked = []

    def fetch(address, folder, most):
        asked.append(address)
        return bundle

    monkeypatch.setattr("labkit.commands.catch_up._fetch", fetch)
    address = "https://example.net/c/bundle.tar"
    for query in "?sv=1&sig=a%2Fb%3D", "":
        main(["catch-up", "04", "--from", address + query, "--key", str(keys["mine"][1])])
        assert asked[-1] == f"{address}.sig{query}"


def test_a_key_that_is_not_there_is_said_before_anything_is_fetched(signed, tmp_path, capsys):
    status, said = catch_up(signed, tmp_path / "none.pem", capsys)
    assert status == 1 and "there is no file" in said.err


def test_the_command_that_packs_signs(runs, keys, instructor, monkeypatch, capsys):  # noqa: F811
    runs("instructor")
    monkeypatch.setenv("LAB_RUNS", str(instructor / ".." / "packed"))
    shutil.copytree(instructor / "cpu", instructor / ".." / "packed" / "cpu")
    assert main(["bundle", "--key", str(keys["mine"][0])]) == 0
    out = instructor / ".." / "packed" / "cpu" / "bundle.tar"
    check_signature(out, keys["mine"][1], signature_of(out))
    assert "bundle.tar.sig" in capsys.readouterr().out
