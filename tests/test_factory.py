"""Finding a factory by name: what is found, and what is said where it is not."""

import sys

import pytest

from torchnotes._factory import load


def test_a_factory_in_the_current_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "makers_of_nets.py").write_text("class Nets:\n    @staticmethod\n    def make():\n        return 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load("makers_of_nets:Nets.make")() == 7


@pytest.mark.parametrize("path", ["math", "math:", ":sqrt", ""])
def test_the_form_is_asked_for(path):
    with pytest.raises(ValueError, match=r"factory must be written package\.module:factory, got .*mynet\.models:make"):
        load(path)


def test_a_missing_name_is_named():
    with pytest.raises(AttributeError, match=r"factory must exist in its module.*math has no 'sqroot'"):
        load("math:sqroot")


def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match=r"factory must be callable without arguments, got float at 'math:pi'"):
        load("math:pi")
