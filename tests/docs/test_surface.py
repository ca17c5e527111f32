"""What users import, and where from."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc_blocking import Advertisement, EtcdAdvertisement
from rpc_discovery import EtcdDiscovery, RegistryDiscovery

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BACKENDS = ("rpc_asyncio", "rpc_gevent", "rpc_blocking")
PACKAGES = ("rpc_proto", "rpc_discovery", *BACKENDS)
WHEEL = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
ONE, TWO = "http://127.0.0.1:1", "http://127.0.0.1:2"


def shown_imports() -> Iterator[tuple[str, str, str]]:
    """Give page, module and name of each import that a page shows."""
    for page in PAGES:
        for code in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S):
            for module, names in re.findall(r"^ *from (rpc_[\w.]+) import ([^(\n]+)$", code, re.M):
                for name in names.split(","):
                    yield page.name, module, name.strip()


def imported(package: str) -> None:
    if package == "rpc_gevent":
        pytest.importorskip("gevent", reason="the extra gevent is not installed")
    importlib.import_module(package)


def test_names_that_the_pages_import_are_public():
    shown = list(shown_imports())
    assert len(shown) > 20
    for page, module, name in shown:
        if not module.startswith("rpc_gevent"):
            assert name in importlib.import_module(module).__all__, (page, module, name)
        assert not module.startswith("rpc_common"), (page, "is not for users")


@pytest.mark.parametrize("package", PACKAGES)
def test_all_public_names_of_a_package_can_be_had(package):
    imported(package)
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


@pytest.mark.fault(73)
@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_where_each_public_name_comes_from(package):
    """A `__getattr__` that they see would make any name, also a wrong one, an object."""
    file = importlib.util.find_spec(package).origin
    tree = ast.parse(Path(file).read_text())
    seen = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    assert set(names) <= seen
    assert not [node for node in tree.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("package", ["rpc_asyncio", "rpc_blocking"])
def test_import_for_one_server_loads_no_discovery(package):
    code = f"import sys, {package}; print([m for m in sys.modules if 'rpc_discovery' in m])"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.stdout == "[]\n"


def test_the_backends_export_the_same_names():
    first, *others = ({*importlib.import_module(backend).__all__} for backend in BACKENDS)
    for other in others:
        assert other == first


@pytest.mark.fault(74)
@pytest.mark.parametrize("package", WHEEL["wheel"]["packages"])
def test_each_package_of_the_wheel_tells_that_it_is_typed(package):
    assert (ROOT / package / "py.typed").exists()


@pytest.mark.fault(89)
@pytest.mark.parametrize("urls", [(ONE, TWO), ([ONE, TWO],)])
def test_discoveries_take_several_urls(urls):
    assert [*RegistryDiscovery(*urls).open(0.0, lambda: 0.0).links] == [ONE, TWO]
    assert EtcdDiscovery(*urls).open(0.0, lambda: 0.0).endpoints == [ONE, TWO]


@pytest.mark.fault(89)
@pytest.mark.parametrize("urls", [(ONE, TWO), ([ONE, TWO],)])
def test_registrations_take_several_urls(urls):
    assert Advertisement(*urls).where == EtcdAdvertisement(*urls).where == [ONE, TWO]
