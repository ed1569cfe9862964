"""Loading torch and transformers without the parts of them that no stage uses, which took most of a stage's start.

transformers looks which optional packages are there and imports those that it finds for features of its own: scipy for
losses of object detection, accelerate (and with it MLflow) for spreading a model over devices, scikit-learn for
assisted generation, and on one process the tensors of torch that are spread over several. Here it is told that they are
absent, by filling the caches of its own checks. torch and transformers also mark functions that torch's compiler shall
leave alone, and load the compiler for that; a stand-in passes such marks by and makes way for the real compiler as soon
as anything else is asked of it. What a version of transformers has not got is passed over.
"""

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

CHECKS = "transformers.utils.import_utils"
COMPILER = "torch._dynamo"
INDEXING = "torch._dynamo._trace_wrapped_higher_order_op"
ABSENT = {"is_accelerate_available": "accelerate", "is_scipy_available": "scipy", "is_sklearn_available": "sklearn"}
"""Checks that are told no, and the packages that they look for."""
SPREAD = "is_torch_distributed_available"
"""The check that is told no on one process."""


class AfterChecks(importlib.abc.MetaPathFinder):
    """Sees when transformers' checks have been loaded and nothing that asks them has, and finds nothing itself."""

    done = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Nothing, for any module."""
        checks = sys.modules.get(CHECKS)
        if checks is not None and not self.done and not getattr(checks.__spec__, "_initializing", False):
            self.done = True
            say_absent(checks)
        if fullname == "peft":  # takes it for granted that transformers has imported this
            importlib.import_module("torch.distributed.tensor")
        return None


class StandIn(ModuleType):
    """In place of the compiler until anything but a mark is asked of it."""

    def __getattr__(self, name: str) -> Any:
        if name in ("__file__", "__spec__"):  # asked by whoever walks through the modules, not by a user
            raise AttributeError(name)
        return getattr(real_compiler(), name)

    @staticmethod
    def disable(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
        """The function itself: nothing is compiled that it could be kept from."""
        return StandIn.disable if function is None else function

    allow_in_graph = assume_constant_result = disable

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        """Nothing: there is no graph to break."""


class Indexing(ModuleType):
    """In place of a part of the compiler from which transformers' masks take one class."""

    def TransformGetItemToIndex(self) -> Any:
        """One of the real class."""
        real_compiler()
        return importlib.import_module(INDEXING).TransformGetItemToIndex()


def install() -> None:
    """From now on torch and transformers are loaded without these parts, if they are not loaded yet.

    Not for a process that compiles models.
    """
    if "torch" not in sys.modules and "transformers" not in sys.modules:
        sys.meta_path.insert(0, AfterChecks())
        sys.modules[COMPILER], sys.modules[INDEXING] = StandIn(COMPILER), Indexing(INDEXING)


def real_compiler() -> ModuleType:
    """Put torch's compiler in the place of the stand-ins."""
    for name, kind in ((COMPILER, StandIn), (INDEXING, Indexing)):
        if isinstance(sys.modules.get(name), kind):
            del sys.modules[name]
    return importlib.import_module(COMPILER)


def say_absent(checks: Any) -> None:
    """Fill the caches of transformers' checks with no.

    Args:
        checks: the module that has them.
    """
    real = getattr(checks, "_is_package_available", None)
    if real is None:
        return

    def said(name: str, *arguments: Any, **options: Any) -> Any:
        return (False, "N/A") if name in ABSENT.values() else real(name, *arguments, **options)

    checks._is_package_available = said
    try:
        for name in ABSENT:
            _refill(getattr(checks, name, None))
    finally:
        checks._is_package_available = real
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        import torch.distributed

        available = torch.distributed.is_available
        torch.distributed.is_available = lambda: False
        try:
            _refill(getattr(checks, SPREAD, None))
        finally:
            torch.distributed.is_available = available


def _refill(check: Any) -> None:
    if hasattr(check, "cache_clear"):
        check.cache_clear()
        check()
