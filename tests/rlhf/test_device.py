import contextlib

import numpy
import pytest
import torch

from rlhf.device import autocast, choose_device, generator, make_reproducible


@pytest.fixture(autouse=True)
def _restore_determinism():
    yield
    torch.use_deterministic_algorithms(False)


def test_without_gpu_the_cpu_is_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == torch.device("cpu")


def test_the_gpu_of_the_local_rank_is_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device() == torch.device("cuda", 3)


def test_auto_means_fp32_on_a_cpu_and_bf16_on_a_gpu():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert isinstance(autocast(cpu, "auto"), contextlib.nullcontext)
    assert isinstance(autocast(gpu, "float32"), contextlib.nullcontext)
    if torch.cuda.is_available():
        assert isinstance(autocast(gpu, "auto"), torch.autocast)


def test_bfloat16_reaches_matrix_products():
    with autocast(torch.device("cpu"), "bfloat16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="float16"):
        autocast(torch.device("cpu"), "float16")


def test_one_seed_gives_one_sequence():
    def draw():
        make_reproducible(5)
        return torch.rand(3).tolist(), numpy.random.rand(), torch.rand(2, generator=generator(5)).tolist()

    assert draw() == draw()
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("gpu", "deterministic", "mode"), [(0, 1, 2), (0, 0, 2), (1, 1, 1), (1, 0, 0)])
def test_only_a_gpu_may_take_kernels_whose_sums_come_in_any_order(monkeypatch, gpu, deterministic, mode):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpu))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    make_reproducible(5, deterministic=bool(deterministic))
    assert torch.get_deterministic_debug_mode() == mode
    assert torch.backends.cudnn.benchmark == (mode == 0)
