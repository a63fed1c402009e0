"""The lazy public names of `import regraft`."""

import pytest

import regraft


@pytest.mark.parametrize("name", regraft.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(regraft, name) is not None


def test_dir_lists_public_names() -> None:
    assert set(regraft.__all__) <= set(dir(regraft))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'regraft' has no attribute 'nonsense'"):
        _ = regraft.nonsense  # pyright: ignore[reportAttributeAccessIssue]
