"""What older versions of other libraries lack: tests that need it skip, and say why."""

from importlib.metadata import version

import pytest
from packaging.version import Version


def since(library, first, what):
    """A mark for tests of what a library has had since the version `first`."""
    installed = version(library)
    return pytest.mark.skipif(
        Version(installed) < Version(first), reason=f"{what}: since {library} {first}, and this is {installed}"
    )
