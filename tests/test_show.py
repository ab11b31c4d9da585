import ast
import inspect

import pytest

from metarl_lib import maml, types
from metarl_lib.show import Source, show


class Sample:
    """A class."""

    # kept: what the class is for
    size = 1

    @property
    def area(self):
        """An area.

        In two paragraphs.
        """

        return self.size**2

    def nothing(self):
        """All there is."""


def test_the_source_is_shown_as_it_stands():
    shown = show(maml.adapt)
    assert repr(shown) == inspect.getsource(maml.adapt).strip()
    assert shown._repr_markdown_() == f"```python\n{shown!r}\n```"


def test_a_method_is_shown_from_the_margin():
    assert repr(show(Sample.nothing)).startswith("def nothing(self):\n    ")


def test_docstrings_can_be_left_out():
    assert repr(show(Sample, docstring=False)) == (
        "class Sample:\n    # kept: what the class is for\n    size = 1\n\n"
        "    @property\n    def area(self):\n        return self.size**2\n\n"
        '    def nothing(self):\n        """All there is."""'
    )


@pytest.mark.parametrize("obj", [maml.train, maml.Config, maml, types])
def test_without_docstrings_it_is_the_same_program(obj):
    full, short = ast.parse(repr(show(obj))), ast.parse(repr(show(obj, docstring=False)))
    assert len(repr(show(obj, docstring=False))) < len(repr(show(obj)))
    for node in ast.walk(full):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) and len(node.body) > 1:
            del node.body[0]
    assert ast.dump(full) == ast.dump(short)


def test_a_fence_inside_the_source_does_not_end_the_block():
    text = 'TEXT = """\n````\n```python\n"""'
    assert Source(text)._repr_markdown_() == f"`````python\n{text}\n`````"


@pytest.mark.parametrize("obj", [3, {"a": 1}, len, None])
def test_what_has_no_source_is_refused(obj):
    with pytest.raises(TypeError, match="show needs a function, class or module written in Python, got"):
        show(obj)
