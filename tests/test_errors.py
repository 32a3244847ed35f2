"""Error messages with the text that libraries wrap around them removed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from normbench.errors import NormbenchError, UserError, details, reason, unknown, unwrapped, why

KERAS = (
    "Exception encountered when calling Mine.call().\n\n\x1b[1m{}\x1b[0m\n\n"
    "Arguments received by Mine.call():\n  • inputs=tf.Tensor(shape=(2, 2), dtype=float32)"
)
AUTOGRAPH = (
    'in user code:\n\n    File "/home/me/mine.py", line 8, in g  *\n'
    '        if x.shape[0] == 2: raise ValueError("mine")\n\n'
    "    ValueError: my own\n    reason: two lines\n    \n    and a third\n"
)
GRAPH = (
    "Graph execution error:\n\nDetected at node assert_equal/Assert defined at (most recent call "
    'last):\n  File "/home/me/mine.py", line 29, in <module>\n\n'
    "assertion failed: [no even batch]\n\t [[{{node assert_equal/Assert}}]] [Op:__inference_f_2]"
)
PY_FUNCTION = (
    "Graph execution error:\n\nDetected at node EagerPyFunc defined at (most recent call last):\n"
    '  File "/home/me/mine.py", line 12, in h\n\nValueError: from py function\nline 2\n'
    'Traceback (most recent call last):\n\n  File "/tf/script_ops.py", line 267, in __call__\n'
    "    return func(device, token, args)\n           ^^^^^^^^^^^^^^^^^^^^^^^^^\n\n"
    '  File "/home/me/mine.py", line 10, in py\n'
    '    def py(x): raise ValueError("from py function")\n               ^^^^^^^^^^^^^^^^\n\n'
    "ValueError: from py function\nline 2\n\n\n\t [[{{node EagerPyFunc}}]] [Op:__inference_h_19]"
)
CALLBACK = (
    "INTERNAL: CpuCallback error calling callback: Traceback (most recent call last):\n"
    '  File "/home/me/mine.py", line 10, in <module>\n  File "/home/me/mine.py", line 2, in py\n'
    "my_layers.TooSmall: from callback\nline 2"
)
EAGER = (
    "{{function_node __wrapped__Reshape_device_/job:localhost/device:CPU:0}} "
    "Input to reshape is a tensor with 4 values [Op:Reshape]"
)


@pytest.mark.parametrize(
    ("message", "kind", "says"),
    [
        ("one\n\n  two", "E", "one two"),
        ("", "E", ""),
        (KERAS.format("first line\nsecond\n\nlast"), "E", "first line second last"),
        (KERAS.format(""), "E", ""),
        (KERAS.format(AUTOGRAPH), "ValueError", "my own reason: two lines and a third"),
        (AUTOGRAPH, "ValueError", "my own reason: two lines and a third"),
        (GRAPH, "E", "assertion failed: [no even batch]"),
        (PY_FUNCTION, "ValueError", "from py function line 2"),
        (CALLBACK, "TooSmall", "from callback line 2"),
        (EAGER, "E", "Input to reshape is a tensor with 4 values"),
    ],
)
def test_text_that_libraries_add_to_errors_is_removed(message, kind, says):
    assert unwrapped("E", message) == (kind, says)


def test_long_reasons_are_truncated():
    message = unwrapped("E", "x" * 9999)[1]
    assert len(message) == 600
    assert message.endswith("…")


def wrap(original: BaseException) -> None:
    """Raise an error the way Keras does: as a copy with more text."""
    try:
        raise original
    except BaseException as error:
        raise RuntimeError(KERAS.format(error.args[0] if error.args else "")) from None


def look_up() -> None:
    try:
        raise KeyError("x")
    except KeyError:
        raise ValueError("no weight x") from None


def raised(function: Callable[..., None], *args: object) -> Exception:
    with pytest.raises((RuntimeError, ValueError)) as caught:
        function(*args)
    return caught.value


def test_original_error_is_preferred_to_a_wrapped_copy():
    assert reason(raised(wrap, FileNotFoundError(2, "No such file", "a.npy"))) == (
        "FileNotFoundError: [Errno 2] No such file: 'a.npy'"
    )
    assert reason(raised(wrap, ValueError())) == "ValueError"
    assert reason(raised(wrap, KeyError("gamma"))) == "KeyError: gamma"
    assert reason(raised(wrap, UserError("no\n such place"))) == "no such place"
    assert details(raised(wrap, UserError("no such place"))) == ("UserError", "no such place")


def test_error_raised_while_handling_another_is_reported_itself():
    assert reason(raised(look_up)) == "ValueError: no weight x"


def test_types_are_named_except_for_errors_of_this_package():
    assert reason(NormbenchError("a\nb")) == "a b"
    assert reason(ValueError("a\nb")) == "ValueError: a b"
    assert reason(KeyError()) == "KeyError"


def test_why_omits_the_type_of_a_value_error():
    assert why(ValueError("too small")) == "too small"
    assert why(UserError("too small")) == "too small"
    assert why(ZeroDivisionError("division by zero")) == "ZeroDivisionError: division by zero"
    assert why(ValueError()) == "ValueError"


def test_unknown_name_gets_the_nearest_and_all_allowed_names():
    text = str(unknown("norm", "gm", ["in", "gn", "bn"]))
    assert text == "unknown norm 'gm': did you mean 'gn'? (allowed: bn, gn, in)"
    assert str(unknown("norm", "gm", [])) == "unknown norm 'gm' (none exist)"


def test_of_very_many_allowed_names_only_the_most_similar_are_listed():
    names = [f"norm.{letter}{digit}" for letter in "abcdefghij" for digit in range(10)]
    text = str(unknown("key", "norm.c77", names, see="normbench explain"))
    assert text.startswith("unknown key 'norm.c77': did you mean 'norm.c7'? (allowed: ")
    assert text.endswith(" and 88 more, see `normbench explain`)")
    assert text.count("norm.") == 2 + 12
