"""What pet knows of a model family (`config.model_type`): one `Family` each, and all that differs by family is in it.

Any masked LM of transformers works without an entry, more slowly: `family_of` then answers with the defaults of
`Family`. An entry says how the heads are taken apart, so that only the states that are asked for go through them;
whether rows can lie end to end (`packing`); and which linear maps get adapters (`lora`). Nothing else asks for a
model's type.

Shapes: B rows, N tokens, Q of them asked about, H hidden size, E embedding size, V vocabulary, L labels.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pet.modeling.attention import Reads, read_attention

Transform = Callable[[torch.Tensor], torch.Tensor]
Head = tuple[Transform, torch.Tensor, torch.Tensor | None]
"""Transform of hidden states [..., H] -> [..., E], output embeddings [V, E], bias [V]."""


@dataclass(frozen=True)
class Family:
    """What pet knows of one model family. The defaults are right for a family of which nothing is known."""

    model_type: str
    """What its configurations say (`config.model_type`)."""

    lm_head: Callable[[Any], Head] | None = None
    """Takes the head of a masked LM apart. `None`: the model is asked for its full vocabulary logits."""

    lm_head_has_bias: Callable[[Any], bool] = lambda config: True
    """Whether that head has a bias in a model of this configuration."""

    classifier_head: Callable[[Any, torch.Tensor], torch.Tensor] | None = None
    """Sequence classifier and first hidden state of each row [B, H] -> logits [B, L]. `None`: the classifier is asked
    as a whole, on padded rows."""

    packs: bool = False
    """Whether rows can lie end to end: positions can be given (`position_ids`), all but attention is computed token by
    token, and attention goes through transformers' interface. Else rows are padded."""

    positions_follow_padding: bool = False
    """Whether positions are numbered from after the padding token's id. Else from 0."""

    read_layer: type | None = None
    """Laid over the class of the last layer, so that it can compute some tokens only (`ReadLayer`). `None`: it computes
    all. Of use only where `packs`."""

    lora_targets: tuple[str, ...] = ()
    """The linear maps that get adapters by default (Hu et al. 4.2: query and value). None: settings must name some."""

    positional_maps: tuple[str, ...] = ("query_proj", "key_proj")
    """Linear maps that also read a table of positions if the configuration says `share_att_key`. That table belongs to
    no member, so these maps cannot get adapters then. The names are DeBERTa's, which its descendants share."""

    def first_position(self, config: Any) -> int:
        """The number of a row's first position."""
        return int(config.pad_token_id) + 1 if self.positions_follow_padding else 0

    def has_known_bias(self, config: Any) -> bool:
        """Whether the LM head has a bias that pet can find."""
        return self.lm_head is not None and self.lm_head_has_bias(config)


# ---- heads of masked LMs -------------------------------------------------------------------------------------------


def bert_lm_head(lm: Any) -> Head:
    """BERT, and DeBERTa-v2 with its legacy head."""
    return lm.cls.predictions.transform, lm.cls.predictions.decoder.weight, lm.cls.predictions.decoder.bias


def roberta_lm_head(lm: Any) -> Head:
    """RoBERTa and XLM-R."""
    head = lm.lm_head
    return (
        lambda hidden: head.layer_norm(functional.gelu(head.dense(hidden))),
        head.decoder.weight,
        head.decoder.bias,
    )


def albert_lm_head(lm: Any) -> Head:
    """ALBERT: the transform leads to the smaller embedding size."""
    head = lm.predictions
    return (
        lambda hidden: head.LayerNorm(head.activation(head.dense(hidden))),
        head.decoder.weight,
        head.decoder.bias,
    )


def deberta_lm_head(lm: Any) -> Head:
    """DeBERTa-v2 and v3, with the legacy head or the one tied to the input embeddings."""
    if lm.legacy:
        return bert_lm_head(lm)
    head = lm.lm_predictions.lm_head
    return (
        lambda hidden: head.LayerNorm(head.transform_act_fn(head.dense(hidden))),
        lm.deberta.embeddings.word_embeddings.weight,
        head.bias,
    )


def distilbert_lm_head(lm: Any) -> Head:
    """DistilBERT."""
    return (
        lambda hidden: lm.vocab_layer_norm(lm.activation(lm.vocab_transform(hidden))),
        lm.vocab_projector.weight,
        lm.vocab_projector.bias,
    )


def modernbert_lm_head(lm: Any) -> Head:
    """ModernBERT."""
    return lm.head, lm.decoder.weight, lm.decoder.bias


# ---- heads of classifiers ------------------------------------------------------------------------------------------


def bert_classifier_head(model: Any, first: torch.Tensor) -> torch.Tensor:
    """BERT: pooler, dropout, one linear map."""
    pooled = model.bert.pooler(like(first, model.bert.pooler)[:, None])
    return torch.as_tensor(model.classifier(model.dropout(like(pooled, model.classifier))))


def albert_classifier_head(model: Any, first: torch.Tensor) -> torch.Tensor:
    """ALBERT: the same, its pooler a plain linear map."""
    body = model.albert
    pooled = body.pooler_activation(body.pooler(like(first, body.pooler)))
    return torch.as_tensor(model.classifier(model.dropout(like(pooled, model.classifier))))


def roberta_classifier_head(model: Any, first: torch.Tensor) -> torch.Tensor:
    """RoBERTa and XLM-R."""
    return torch.as_tensor(model.classifier(like(first, model.classifier)[:, None]))


def like(states: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """States in the precision of a module's weights: a pooler belongs to the body, which may be in a lower one."""
    return states.to(next(module.parameters()).dtype)


# ---- last layers ---------------------------------------------------------------------------------------------------


class ReadLayer:
    """Lets a last layer that is built like BERT's compute only the tokens that are asked about (`reads`).

    `packing.install` lays it over the layer's own class, so that no name of a weight changes.
    """

    def forward(self: Any, hidden_states: torch.Tensor, *rest: Any, reads: Reads | None = None, **inputs: Any) -> Any:
        """[1, N, H] -> [1, N, H], or [1, Q, H]."""
        if reads is None:
            return super().forward(hidden_states, *rest, **inputs)  # type: ignore[misc]
        attention = self.attention.self
        chosen = hidden_states[:, reads.tokens]  # [1, Q, H]
        query, key, value = (
            project(given).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
            for project, given in (
                (attention.query, chosen),
                (attention.key, hidden_states),
                (attention.value, hidden_states),
            )
        )
        found = read_attention(
            query,
            key,
            value,
            attention.scaling,
            attention.dropout.p if self.training else 0.0,
            reads,
            *(inputs[name] for name in ("starts", "rows", "places", "width")),
        )
        return self.feed_forward_chunk(self.attention.output(found.flatten(2), chosen))


# ---- one entry a family --------------------------------------------------------------------------------------------

ALBERT = Family(
    "albert",
    lm_head=albert_lm_head,
    classifier_head=albert_classifier_head,
    packs=True,
    lora_targets=("query", "value"),
)
BERT = Family(
    "bert",
    lm_head=bert_lm_head,
    classifier_head=bert_classifier_head,
    packs=True,
    read_layer=ReadLayer,
    lora_targets=("query", "value"),
)
CAMEMBERT = Family("camembert", positions_follow_padding=True)
DEBERTA_V2 = Family("deberta-v2", lm_head=deberta_lm_head, lora_targets=("query_proj", "value_proj"))
DISTILBERT = Family("distilbert", lm_head=distilbert_lm_head, lora_targets=("q_lin", "v_lin"))
ELECTRA = Family("electra", lora_targets=("query", "value"))
MODERNBERT = Family(
    "modernbert",
    lm_head=modernbert_lm_head,
    lm_head_has_bias=lambda config: bool(config.decoder_bias),
    lora_targets=("Wqkv",),
)
ROBERTA = Family(
    "roberta",
    lm_head=roberta_lm_head,
    classifier_head=roberta_classifier_head,
    packs=True,
    positions_follow_padding=True,
    read_layer=ReadLayer,
    lora_targets=("query", "value"),
)
XLM_ROBERTA = dataclasses.replace(ROBERTA, model_type="xlm-roberta")
XLM_ROBERTA_XL = Family("xlm-roberta-xl", positions_follow_padding=True)

FAMILIES: dict[str, Family] = {
    one.model_type: one
    for one in (
        ALBERT,
        BERT,
        CAMEMBERT,
        DEBERTA_V2,
        DISTILBERT,
        ELECTRA,
        MODERNBERT,
        ROBERTA,
        XLM_ROBERTA,
        XLM_ROBERTA_XL,
    )
}
"""By `model_type`."""


def register(family: Family) -> None:
    """Make a family known, or replace what was known of it.

    Args:
        family: its entry, used from then on for every model whose `config.model_type` is `family.model_type`.
    """
    FAMILIES[family.model_type] = family


def family_of(model_or_config: Any) -> Family:
    """What is known of the family of a model.

    Args:
        model_or_config: a transformers model or its configuration.

    Returns:
        The family's entry; for an unknown family one with the defaults.
    """
    model_type = getattr(model_or_config, "config", model_or_config).model_type
    return FAMILIES.get(model_type) or Family(model_type)
