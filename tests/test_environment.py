"""What is recorded of the code that made a result."""

import subprocess

from experiments.running import environment


def test_commit_tells_changed_code_and_no_other_changes(tmp_path, monkeypatch):
    code, text = tmp_path / "code.py", tmp_path / "README.md"
    monkeypatch.setattr(environment, "__file__", str(code))
    # Asked once in a program; here, each time anew.
    monkeypatch.setattr(environment, "commit", environment.commit.__wrapped__)
    code.write_text("one")
    text.write_text("one")
    assert environment.commit() is None
    identity = "-c", "user.name=Test", "-c", "user.email=test@example.com"
    for arguments in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "x")):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    clean = environment.commit()
    assert clean is not None and len(clean) == 40
    text.write_text("two")
    assert environment.commit() == clean
    code.write_text("two")
    assert environment.commit() == clean + "-dirty"
    code.write_text("one")
    (tmp_path / "more.py").write_text("one")
    assert environment.commit() == clean + "-dirty"
