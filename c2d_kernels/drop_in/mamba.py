"""mamba_ssm's Mamba block (2312.00752, figure 3), whose weights load as they are."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import dispatch
from ..ops.selective_scan.op import selective_scan
from .functions import causal_conv1d_update, selective_state_update


class Mamba(nn.Module):
    """`out_proj(scan(SiLU(conv1d(x))) * SiLU(z))`, x and z = in_proj(input).

    Args:
        d_model: channels of input and output.
        d_state: states of the scan, per channel.
        d_conv: width of the causal convolution.
        expand: channels of the scan, relative to d_model.
        dt_rank: rank of the step sizes' projection; "auto" is d_model / 16, rounded up.
        dt_min, dt_max: between which step sizes begin.
        dt_init: "random" or "constant", how their projection begins, within dt_scale / sqrt(rank).
        dt_init_floor: below which no step size begins.
        conv_bias, bias: whether the convolution and the Linears in_proj, out_proj have one.
        use_fast_path: taken for the interface's sake; there is one path.
        layer_idx: under which inference_params keeps this layer's states.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        inner = self.d_inner
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=bias, **place)
        self.conv1d = nn.Conv1d(
            inner, inner, d_conv, groups=inner, padding=d_conv - 1, bias=conv_bias, **place
        )
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False, **place)
        self.dt_proj = nn.Linear(self.dt_rank, inner, **place)
        rates = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
        self.A_log = nn.Parameter(rates.log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner, device=device))
        self.out_proj = nn.Linear(inner, d_model, bias=bias, **place)
        self._start_steps(dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        # What optimisers and initialisers of such code look for.
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]

    def _start_steps(self, least: float, most: float, how: str, scale: float, floor: float) -> None:
        """Step sizes that begin log-uniform in [least, most]: softplus of dt_proj's bias."""
        bound = scale * self.dt_rank**-0.5
        if how == "constant":
            nn.init.constant_(self.dt_proj.weight, bound)
        elif how == "random":
            nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        else:
            raise ValueError(f"dt_init must be 'random' or 'constant', got {how!r}.")
        bias = self.dt_proj.bias
        drawn = torch.rand(self.d_inner, device=bias.device)
        step = torch.exp(math.log(least) + drawn * math.log(most / least)).clamp(min=floor)
        with torch.no_grad():
            bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """(batch, L, d_model) -> the same.

        Args:
            inference_params: mamba_ssm's record of a generation: `seqlen_offset`, at 0 for a whole
                prompt and then for one token, and `key_value_memory_dict`.
        """
        states = None
        if inference_params is not None:
            states = self._states(inference_params, hidden_states.shape[0])
            if inference_params.seqlen_offset > 0:
                return self.step(hidden_states, *states)[0]
        length = hidden_states.shape[1]
        x, z = self.in_proj(hidden_states).mT.chunk(2, dim=1)
        if states is not None:
            seen = F.pad(x, (self.d_conv, 0))
            states[0].copy_(seen[..., seen.shape[-1] - self.d_conv :])
        x = F.silu(self.conv1d(x)[..., :length])
        delta, B, C = self._selection(x.mT)
        A = -torch.exp(self.A_log.float())
        with dispatch.without_autocast(x.device):
            y, last_state = selective_scan(
                x,
                delta.mT.to(x.dtype),
                A,
                B.mT,
                C.mT,
                self.D.float(),
                z=z.to(x.dtype),
                delta_softplus=True,
                return_last_state=True,
            )
        if states is not None:
            states[1].copy_(last_state)
        return self.out_proj(y.mT)

    def step(
        self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One token (batch, 1, d_model); both states are updated in place and returned too."""
        if hidden_states.shape[1] != 1:
            raise ValueError(
                f"hidden_states must hold one token at a time, got {hidden_states.shape[1]}."
            )
        x, z = self.in_proj(hidden_states[:, 0]).chunk(2, dim=-1)
        weight = self.conv1d.weight.squeeze(1)
        x = causal_conv1d_update(x, conv_state, weight, self.conv1d.bias, "silu")
        delta, B, C = self._selection(x)
        A = -torch.exp(self.A_log.float())
        y = selective_state_update(ssm_state, x, delta, A, B, C, self.D, z, dt_softplus=True)
        return self.out_proj(y)[:, None], conv_state, ssm_state

    def _selection(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes before softplus (..., d_inner), B and C (..., d_state) of x."""
        sizes = [self.dt_rank, self.d_state, self.d_state]
        steps, B, C = self.x_proj(x).split(sizes, dim=-1)
        return self.dt_proj(steps), B, C

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Zeros for `step`'s states: (batch, d_inner, d_conv) and (batch, d_inner, d_state)."""
        like = self.conv1d.weight
        conv_state = like.new_zeros(batch_size, self.d_inner, self.d_conv, dtype=dtype)
        return conv_state, like.new_zeros(batch_size, self.d_inner, self.d_state, dtype=dtype)

    def _states(self, inference_params: Any, batch: int) -> tuple[Tensor, Tensor]:
        """This layer's states of a generation, made at its first call."""
        if self.layer_idx is None:
            raise ValueError("layer_idx must be given to Mamba for inference_params to be used.")
        kept = inference_params.key_value_memory_dict
        if self.layer_idx not in kept:
            kept[self.layer_idx] = self.allocate_inference_cache(batch, 0)
        return kept[self.layer_idx]
