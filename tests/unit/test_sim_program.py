"""Which program a run names: two states of a working tree are two programs."""

from pathlib import Path

import pytest

from gridtokenx.lab.sim import execute


def named(monkeypatch: pytest.MonkeyPatch, *answers: str | None) -> str:
    said = iter(answers)
    monkeypatch.setattr(execute, "_git", lambda *_arguments: next(said))
    execute.commit.cache_clear()
    try:
        return execute.commit()
    finally:
        execute.commit.cache_clear()


def test_a_commit_is_named_bare_only_where_git_says_that_nothing_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Git that took too long was taken for a clean tree; and all changed trees had one name."""
    assert named(monkeypatch, "0123456789ab", "") == "0123456789ab"
    changed = named(monkeypatch, "0123456789ab", "M lab/x.py")
    assert changed == named(monkeypatch, "0123456789ab", None)
    head, _, digest = changed.partition("+")
    assert (head, len(digest)) == ("0123456789ab", 12)
    assert named(monkeypatch, None, None) == f"unknown+{digest}"


def test_the_digest_is_of_every_modules_place_and_text(tmp_path: Path) -> None:
    seen = set()
    for part, name, text in (
        ("nodes", "one.py", "x = 1"),
        ("nodes", "one.py", "x = 2"),
        ("nodes", "two.py", "x = 2"),
        ("lab", "sub/three.py", ""),
    ):
        path = tmp_path / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        seen.add(execute._digest([tmp_path / "nodes", tmp_path / "lab"]))
    assert len(seen) == 4
    (tmp_path / "lab" / "notes.txt").write_text("no module")
    assert execute._digest([tmp_path / "nodes", tmp_path / "lab"]) in seen
