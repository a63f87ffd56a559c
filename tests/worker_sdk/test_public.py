"""What the package shows."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import romancy


def test_every_public_name_is_there_and_is_no_module() -> None:
    for name in romancy.__all__:
        value = getattr(romancy, name)
        assert value.__name__ == name
    assert list(romancy.__all__) == sorted(romancy.__all__)


def test_modules_do_not_hide_the_decorators_of_their_names() -> None:
    importlib.import_module("romancy.activity")
    importlib.import_module("romancy.workflow")
    assert callable(romancy.activity)
    assert callable(romancy.workflow)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(romancy, "nothing_of_the_kind")


def test_the_contract_can_be_had_without_the_sdk() -> None:
    code = (
        "import romancy.v1.history_pb2, sys; sys.exit('pydantic' in sys.modules or 'romancy.activity' in sys.modules)"
    )
    path = str(Path(romancy.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, timeout=60, check=False)
    assert done.returncode == 0
