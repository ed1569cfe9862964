"""What a forward pass leaves behind for the backward pass, and what it needs for a moment.

Counted from the operations of transformers' Llama block with torch's fused attention; h is the width of the residual
stream, a of all queries, k of all keys, i of the feed-forward layer; numbers of elements per token and block:

    norm (two)      its input h, the normalised h, and that times the weight h, which the matrices read
    attention       queries a, keys k, values k, output a, and a again as the row of tokens that the last matrix reads
    feed-forward    gate i, activated gate i, up i, their product i (which the last matrix reads)

In fp32 each element has 4 bytes: 4 (6h + 3a + 2k + 4i). Under autocast to bf16 the residual stream and the norms stay
fp32, and every matrix keeps a bf16 copy of its input of its own: 26h + 6a + 4k + 8i bytes. Korthikanti et al. 2022,
eq. 1 (https://arxiv.org/abs/2205.05198), count 34h for a GPT block in 16 bits with dropout, without attention scores.
"""

from rlhf.sizing.model_shape import ModelShape
from rlhf.sizing.setting import Role, Setting

CHUNK = 2**24
"""Logits at once, `rlhf.logprobs.CHUNK_ELEMENTS`; a test holds them equal."""
FUSED, UNFUSED = 8, 12
"""Bytes of each of these logits at the peak: in fp32 the head and its loss are one operation (`rlhf.fused_head`), which
holds logits and their log-softmax; otherwise the log-softmax lies beside two gradients."""
KEPT = 4
"""Of them, what stays until the backward pass when all logits are one chunk."""
SAMPLING = 12
"""Bytes of each logit of a sampling step: logits, their softmax, and that in whole blocks."""


def kept_per_token(shape: ModelShape, setting: Setting, *, adapted: bool = False) -> float:
    """Bytes that one block keeps for each token without checkpointing.

    With an adapter the norms are frozen, and what they normalise need not be kept for their gradients.
    """
    h, a, k, i = shape.hidden, shape.query_width, shape.kv_width, shape.intermediate
    if shape.gated:
        inner, readers = 4, 5
    else:
        inner, readers = (5 if shape.activation == "gelu_new" else 2), 2
    rest = 3 * a + 2 * k + inner * i
    norms = shape.norms * (2 if shape.root_norm and not adapted else 1)
    if setting.precision == "float32":
        return 4 * ((norms + shape.norms) * h + rest)
    if setting.casts:
        # DeepSpeed's linear layer under ZeRO-3 keeps the fp32 input that all readers share.
        inputs = 4 * shape.norms if setting.zero == 3 else 2 * readers
        return (4 * norms + inputs) * h + 2 * rest
    # bf16 weights: the norm computes on an fp32 copy of its input and gives bf16.
    return (4 + 2 * norms / shape.norms) * shape.norms * h + 2 * rest


def kept(shape: ModelShape, setting: Setting, *, adapted: bool = False) -> float:
    """Bytes that one model's forward pass over a micro-batch keeps, the last norm included.

    Args:
        shape: of the model.
        setting: how it is trained; with checkpointing blocks keep their inputs alone.
        adapted: whether only an adapter is trained.
    """
    tokens, stream = setting.rows * setting.tokens, 2 if setting.holds.weights == "bfloat16" else 4
    last = (2 if adapted else 3) * 4 * shape.hidden * tokens
    if setting.activation_checkpointing:
        return last + shape.layers * stream * shape.hidden * tokens
    return last + shape.layers * kept_per_token(shape, setting, adapted=adapted) * tokens


def again(shape: ModelShape, setting: Setting) -> float:
    """Bytes of the one block that the backward pass computes again; the loss and its logits are done with by then."""
    if not setting.activation_checkpointing:
        return 0.0
    return kept_per_token(shape, setting) * setting.rows * setting.tokens


def moving(shape: ModelShape, setting: Setting) -> float:
    """Bytes of gradients at the start of the backward pass: those of the last norm, or of the feed-forward layer."""
    each = 2 if setting.precision == "bfloat16" else 4
    widest = max(4 * 4 * shape.hidden, 2 * each * shape.intermediate - 2 * 4 * shape.hidden)
    return widest * setting.rows * setting.tokens


def loss(role: Role, setting: Setting) -> tuple[float, float]:
    """Bytes for the logits of the response tokens and the hidden states that they come from.

    Returns:
        At the peak, and what of it stays until the backward pass.
    """
    if not role.head:
        return 0.0, 0.0
    rows = setting.rows * setting.response_tokens
    vocabulary = role.head // setting.shape.hidden
    states, count = 2 * 4 * rows * setting.shape.hidden, rows * vocabulary
    each = UNFUSED if setting.precision == "bfloat16" else FUSED
    # The gradient of the output matrix is made while the logits are still there; of several chunks a sum is kept too.
    gradient = 0 if role.adapted else 4 * role.head
    if count > max(CHUNK, vocabulary):  # blocks are computed again
        count = max(CHUNK, vocabulary)
        return states + max(each * count, KEPT * count + 2 * gradient), states
    return states + max(each * count, KEPT * count + gradient), states + KEPT * count


def prefill(shape: ModelShape, setting: Setting, rows: float) -> float:
    """Bytes of a block's tensors while the prompts are read, without a gradient."""
    each = 2 if setting.precision == "bfloat16" else 4
    stream = 2 if setting.holds.weights == "bfloat16" else 4
    return ((2 * stream + 4) * shape.hidden + 3 * each * shape.intermediate) * rows * setting.prompt_tokens


def cache(shape: ModelShape, setting: Setting, rows: float) -> float:
    """Bytes of keys and values with every position reserved, and of one block's copy when finished rows are dropped.

    Rotary positions are multiplied in fp32 where the residual stream is fp32, so keys have 4 bytes there and values 2.
    """
    both = 8 if setting.precision == "float32" else 6 if setting.casts else 4
    return both * shape.kv_width * rows * setting.tokens * (shape.layers + 1)
