"""The algorithms of Ratchet: losses, advantages, models, generation and one recipe for each stage.

Dimensions, as they are written in every docstring:

    B   pairs, prompts or sequences of a batch
    T   token positions of a sequence: prompt, response and padding
    N   response tokens of a whole batch, in row-major order of [B, T]
    V   vocabulary, including rows that no token uses
    G   groups of samples that share a prompt
    n   samples in a group

Units: log-probabilities, entropies and KL divergences in nats; rewards and values in reward-model units;
lengths in tokens unless a name says words.

`response_mask` is True where a token was written by the policy (its end token included). There is no other mask
polarity, and what lies under False is never read.
"""
