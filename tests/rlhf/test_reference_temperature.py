"""Policy and reference are compared under the distribution that is sampled, at its temperature."""

import pytest
import torch

from rlhf.batches import collate
from rlhf.models import forbidden_ids, load_policy
from rlhf.reference import compare_with_reference
from rlhf.tokenizer import load_tokenizer
from tests.rlhf.recipes import tiny_models as tiny


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_policy_and_reference_are_compared_at_the_temperature_of_sampling(tmp_path, temperature):
    folders = [tiny.write_sft(tmp_path / name, seed=seed) for seed, name in enumerate(("policy", "reference"))]
    policy, reference = (load_policy(folder, device="cpu") for folder in folders)
    forbidden = forbidden_ids(load_tokenizer(folders[0]), policy)
    batch = collate([[10, 11]], [[5, 6]], pad_id=0)
    found = compare_with_reference(policy, reference, batch, forbidden, temperature=temperature, rows=1)

    def by_hand(model):
        logits = model(batch.input_ids).logits[0, 2].masked_fill(forbidden, -torch.inf).double()
        return torch.log_softmax(logits / temperature, dim=-1)

    with torch.no_grad():
        ours, theirs = by_hand(policy), by_hand(reference)
    token, allowed = batch.input_ids[0, 3], ~forbidden
    assert found.logprobs[0, 3].item() == pytest.approx(ours[token].item(), abs=1e-5)
    assert found.ref_logprobs[0, 3].item() == pytest.approx(theirs[token].item(), abs=1e-5)
    kl = (ours.exp() * (ours - theirs))[allowed].sum()
    assert found.kl[0, 3].item() == pytest.approx(kl.item(), abs=1e-5)
    assert found.entropy[0, 3].item() == pytest.approx(-(ours.exp() * ours)[allowed].sum().item(), abs=1e-5)
