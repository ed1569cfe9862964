import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from rlhf import matmul
from rlhf.errors import BadInput


def test_product_and_its_gradients_are_those_of_float64():
    source = torch.Generator().manual_seed(0)
    a, b, bias = (torch.randn(*shape, generator=source) for shape in ((7, 5), (3, 5), (3,)))
    inputs = [one.clone().requires_grad_() for one in (a, b, bias)]
    exact = [one.double().requires_grad_() for one in (a, b, bias)]
    weights = torch.randn(7, 3, generator=source)
    found, wanted = matmul.product(*inputs), exact[0] @ exact[1].t() + exact[2]
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-5)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    for one, other in zip(inputs, exact, strict=True):
        torch.testing.assert_close(one.grad, other.grad.float(), rtol=1e-5, atol=1e-5)


def test_a_product_worked_by_hand_and_differentiated_twice():
    # f = (a b^T)^2 with a = [2, 1], b = [3, 4]: a b^T = 10, f = 100, df/da = 20 b = [60, 80],
    # and the slope of 60 + 80 in a is 2 (b1 + b2) b = 14 b = [42, 56].
    a, b = torch.tensor([[2.0, 1.0]], requires_grad=True), torch.tensor([[3.0, 4.0]])
    (slope,) = torch.autograd.grad((matmul.product(a, b) ** 2).sum(), a, create_graph=True)
    assert slope.tolist() == [[60.0, 80.0]]
    assert torch.autograd.grad(slope.sum(), a)[0].tolist() == [[42.0, 56.0]]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_that_adopts_onednn_computes_the_same(kind):
    torch.manual_seed(0)
    if kind == "llama":
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=23, attention_bias=True, **shape))
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=23, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    model.eval()
    ids = torch.arange(10).view(2, 5)
    wanted, names = model(input_ids=ids).logits, list(model.state_dict())
    matmul.choose("onednn")
    matmul.adopt(model)
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D))]
    assert layers
    assert all(type(layer) in matmul.REPLACED.values() for layer in layers)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(input_ids=ids).logits.dtype == torch.bfloat16


def test_native_leaves_a_model_alone():
    layer = nn.Sequential(nn.Linear(2, 2))
    matmul.choose("native")
    assert type(matmul.adopt(layer)[0]) is nn.Linear


def test_a_subclass_of_a_layer_is_left_alone():
    class Own(nn.Linear):
        pass

    matmul.choose("onednn")
    assert type(matmul.adopt(nn.Sequential(Own(2, 2)))[0]) is Own


def test_multiply_is_by_the_chosen_library():
    a, b = torch.randn(4, 3), torch.randn(5, 3)
    matmul.choose("native")
    assert torch.equal(matmul.multiply(a, b), a @ b.t())
    matmul.choose("onednn")
    assert torch.equal(matmul.multiply(a, b), matmul.product(a, b))


def test_a_build_without_onednn_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(BadInput, match=r"has no oneDNN; set engine\.matmul .* to native"):
        matmul.choose("onednn")
    assert matmul.chosen() == "native"


def test_products_of_less_than_fp32_are_refused(monkeypatch):
    monkeypatch.setattr(matmul, "product", lambda a, b: (a.bfloat16() @ b.bfloat16().t()).float())
    with pytest.raises(BadInput, match=r"off by \d\.\de-03 of their size"):
        matmul.choose("onednn")


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="matmul is 'mkl'"):
        matmul.choose("mkl")
