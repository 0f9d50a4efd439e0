# ruff: noqa: N803, N806 - tensor names end in their shape
"""Any causal language model of transformers', with random weights, as a network of ours.

Shapes: B batch, T time, V vocabulary, E experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from rundir import UserError
from rundir.errors import IllegalValue
from trainer.compute import recompute
from trainer.compute.autocast import autocast_dtype
from trainer.config.hugging_face import HuggingFaceConfig

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""What configurations call the number of experts that a token may be sent to."""

_ALIGNMENT = 16
"""Bytes that torch's grouped products want rows and columns to be a multiple of."""

_PAST = ("cache", "past_key_values")
"""What networks call the keys and values that they return and take: since transformers 5.24, and
before."""


class HuggingFaceModel(nn.Module):
    """A network of transformers' behind the interface of :class:`trainer.model.GPT`."""

    def __init__(self, config: HuggingFaceConfig, context: int) -> None:
        """Build with random weights from torch's global generator.

        Args:
            config: the architecture and its settings.
            context: the longest sequence it will see, T.

        Raises:
            UserError: transformers refuses the settings, or has no positions for the context.
        """
        super().__init__()
        self.config, self.context = config, context
        self.network = _built(config)
        self._settings: Any = self.network.config.get_text_config()
        longest = getattr(self._settings, "max_position_embeddings", None)
        if isinstance(longest, int) and longest < context:
            must = f"at most {longest}, the positions of {config.architecture}"
            raise IllegalValue("training.training_params.context_length", context, must)
        if config.separate_experts:
            separate_experts(self.network)
        self._checkpoints = False

    @property
    def activation_checkpointing(self) -> bool:
        """Whether training keeps each block's input and computes the rest of it again."""
        return self._checkpoints

    @activation_checkpointing.setter
    def activation_checkpointing(self, wanted: bool) -> None:
        if wanted and not self.network.supports_gradient_checkpointing:
            must = f"false: transformers can't do it for {self.config.architecture}"
            raise IllegalValue("training.training_params.activation_checkpointing", wanted, must)
        if wanted == self._checkpoints:
            return
        self._checkpoints = wanted
        options = [{"use_reentrant": False, "context_fn": recompute.contexts}] if wanted else []
        verb = "enable" if wanted else "disable"
        # transformers 5 has renamed it, and warns of the old name.
        new = getattr(self.network, f"activation_checkpointing_{verb}", None)
        (new or getattr(self.network, f"gradient_checkpointing_{verb}"))(*options)

    @property
    def parameter_count(self) -> int:
        """How many numbers it learns, all experts' too; a tied weight counts once."""
        return sum(weight.numel() for weight in self.parameters())

    @property
    def active_parameter_count(self) -> float:
        """How many numbers a token is multiplied by: the matrices, and of experts its share.

        An embedding is looked up and multiplies nothing, unless it is the output head too.
        """
        head = self.network.get_output_embeddings()
        tables = {m.weight for m in self.modules() if isinstance(m, nn.Embedding)}
        tables -= {head.weight} if head is not None else set()
        active = 0.0
        for name, weight in self.named_parameters():
            if weight.ndim > 1 and weight not in tables:
                active += weight.numel() * (self._expert_share if ".experts." in name else 1.0)
        return active

    @property
    def _expert_share(self) -> float:
        """Part of the experts that a token goes through."""
        found = (getattr(self._settings, key, None) for key in _EXPERTS)
        count = next((number for number in found if number), 0)
        taken = getattr(self._settings, "num_experts_per_tok", None) or count
        return taken / count if count else 1.0

    def flops_per_token(self, context: int) -> int:
        """Return the FLOPs of training on one token: forward, and twice that for backward.

        Counts matrix products only (2 FLOPs per multiply-add): weights that the token meets, head,
        and causal attention at its mean length of context / 2, whatever window it has.
        """
        heads = getattr(self._settings, "num_attention_heads", None) or 0
        width = getattr(self._settings, "head_dim", None)
        if width is None and heads:
            width = self._settings.hidden_size // heads
        layers: int = self._settings.num_hidden_layers
        attention = layers * 2 * (context // 2) * heads * (width or 0)
        total: float = 6 * (self.active_parameter_count + attention)
        return round(total)

    def forward(
        self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the logits (B, T, V), or with targets the mean loss in nats per token, float32.

        In training the loss has the architecture's own balance of experts on top, where its
        configuration says so (``output_router_logits`` and ``router_aux_loss_coef``).
        """
        output = self.network(input_ids=tokens_BT, use_cache=False)
        logits_BTV: torch.Tensor = output.logits
        if targets_BT is None:
            return logits_BTV
        flat = logits_BTV.float().flatten(0, 1)
        loss = functional.cross_entropy(flat, targets_BT.flatten())
        balance = getattr(output, "aux_loss", None)
        if self.training and balance is not None:
            loss = loss + self._settings.router_aux_loss_coef * balance
        return loss

    def read_on(
        self, tokens_BT: torch.Tensor, past: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the logits (B, T, V) of tokens that follow others, and what to pass with the next.

        Args:
            tokens_BT: what has not been read yet.
            past: what was returned for those before; empty where there are none.

        Returns:
            In place of the past nothing where the architecture keeps none, or under another name:
            then all tokens are to be read again.
        """
        output = self.network(input_ids=tokens_BT, use_cache=True, **past)
        own = [name for name in output if name in _PAST]  # `in` finds the old name too
        return output.logits, {name: output[name] for name in own}


def _built(config: HuggingFaceConfig) -> Any:
    """Return the network, silently.

    Raises:
        UserError: transformers refuses the settings.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    # A small vocabulary has no such tokens, and a padding token would not be trained.
    absent = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    settings = {**absent, **config.overrides, "vocab_size": config.vocab_size}
    try:
        built = AutoConfig.for_model(config.architecture, **settings)
        return AutoModelForCausalLM.from_config(built)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever a model makes of numbers that do not fit each other
        said = " ".join(str(error).split()) or type(error).__name__
        refused = f"transformers can't build {config.architecture} of them: {said}"
        raise UserError(f"model.config.overrides: {refused}") from error


class _Stack(nn.Module):
    """The matrices of E experts, parameters of their own, as one stack (E, …)."""

    def forward(self, *experts: torch.Tensor) -> torch.Tensor:
        """Return them stacked; under autocast in its type, where their sides suit the kernel.

        transformers multiplies by what autocast does not know, in the type of the weights.
        """
        stack = torch.stack(experts)
        dtype = autocast_dtype(stack)
        if dtype and all(side * dtype.itemsize % _ALIGNMENT == 0 for side in stack.shape[1:]):
            stack = stack.to(dtype)
        return stack

    def right_inverse(self, stacked: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what :meth:`forward` makes ``stacked`` of."""
        return tuple(expert.clone() for expert in stacked)


def separate_experts(network: nn.Module) -> None:
    """Make each matrix of a stack of experts a parameter of its own.

    transformers keeps the experts of a layer in one weight of three dimensions. Matrix optimizers
    act on matrices, as they do on those of a model whose experts are modules. Costs a copy of the
    layer's experts in each forward pass.
    """
    stacks = [
        (module, key)
        for name, module in network.named_modules()
        if name.endswith("experts")
        for key, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3
    ]
    for module, key in stacks:
        parametrize.register_parametrization(module, key, _Stack())
