"""Writing what was trained: a plain model with the adapter added into its weights, and the adapter alone beside it."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.adapters import FOLDER, merged, save_adapter
from rlhf.models import save_policy
from rlhf.outputs import folder_writer


def export_policy(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a policy as a Hugging Face folder; with an adapter, also the adapter alone in `adapter/` below it.

    Args:
        policy: with whole weights; stays as it is.
        tokenizer: written beside it.
        folder: to replace, once all is written.
    """
    with folder_writer(folder) as temporary:
        save_policy(merged(policy), tokenizer, temporary)
        save_adapter(policy, temporary / FOLDER)
