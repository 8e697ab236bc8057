"""The pronunciation model of the package g2p-en: a GRU encoder-decoder with one fixed context vector.

Its ``checkpoint20.npz`` holds arrays by name and no configuration; ids are those of the two lists below. The gates of
its cells stand in torch's order (reset, update, new), so tensors carry over as they are. The source ends with id 2, its
own ``</s>``; the target begins with 2, ``<s>``, and ends with 3.
"""

import os

import numpy as np
import torch

from ..configuration.configuration_dragoman_recurrent import DragomanRecurrentConfig
from ..modeling.modeling_dragoman_recurrent import DragomanRecurrentForConditionalGeneration
from .families import ConversionError

GRAPHEMES = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
PHONEMES = (
    "<pad> <unk> <s> </s> AA0 AA1 AA2 AE0 AE1 AE2 AH0 AH1 AH2 AO0 AO1 AO2 AW0 AW1 AW2 AY0 AY1 AY2 B CH D DH EH0 EH1 "
    "EH2 ER0 ER1 ER2 EY0 EY1 EY2 F G HH IH0 IH1 IH2 IY0 IY1 IY2 JH K L M N NG OW0 OW1 OW2 OY0 OY1 OY2 P R S SH T TH "
    "UH0 UH1 UH2 UW UW0 UW1 UW2 V W Y Z ZH"
).split()
_NAMES = {
    "enc_emb": "model.encoder.embed_tokens.weight",
    "dec_emb": "model.decoder.embed_tokens.weight",
    "fc_w": "lm_head.weight",
    "fc_b": "lm_head.bias",
    **{
        f"{short}_{kind}_{side}": f"model.{long}.layers.rnn.{'weight' if kind == 'w' else 'bias'}_{side}_l0"
        for short, long in (("enc", "encoder"), ("dec", "decoder"))
        for kind in "wb"
        for side in ("ih", "hh")
    },
}


def read_g2p_en(file: str | os.PathLike[str]) -> DragomanRecurrentForConditionalGeneration:
    """The model in a ``checkpoint20.npz``, in eval mode. It writes 20 phonemes at most, as the package does.

    Raises:
        ConversionError: for an array too many or too few, or of another shape.
    """
    with np.load(file, allow_pickle=False) as arrays:
        found = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    config = DragomanRecurrentConfig(
        vocab_size=len(PHONEMES),
        source_vocab_size=len(GRAPHEMES),
        hidden_size=256,
        cell="gru",
        bidirectional=False,
        attention="none",
        logits_bias=True,
        tie_word_embeddings=False,
        share_embeddings=False,
        bos_token_id=2,
        decoder_start_token_id=2,
        eos_token_id=3,
    )
    with torch.device("meta"):
        shapes = {
            name: value.shape for name, value in DragomanRecurrentForConditionalGeneration(config).state_dict().items()
        }
    problems = [f"there is no {name}" for name in _NAMES.keys() - found.keys()]
    problems += [f"{name} has no counterpart" for name in found.keys() - _NAMES.keys()]
    problems += [
        f"{name} has the shape {tuple(value.shape)}, not {tuple(shapes[_NAMES[name]])}"
        for name, value in found.items()
        if name in _NAMES and value.shape != shapes[_NAMES[name]]
    ]
    if problems:
        raise ConversionError("g2p-en", sorted(problems))
    state = {_NAMES[name]: value for name, value in found.items()}
    model = DragomanRecurrentForConditionalGeneration.from_pretrained(None, config=config, state_dict=state)
    model.generation_config.max_new_tokens = 20
    return model
