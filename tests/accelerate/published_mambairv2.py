"""MambaIRv2's layers in plain PyTorch, by their paper (2411.15269), with the published names."""

import math

import torch
from published_layers import ConvFFN, map_of, windows_of
from torch import nn
from torch.nn import functional as F


class Gate(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)

    def forward(self, x, size):
        kept, gate = x.chunk(2, -1)
        return kept * self.conv(self.norm(gate).mT.unflatten(2, size)).flatten(2).mT


class GatedMLP(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.act, self.sg = nn.Linear(dim, hidden), nn.GELU(), Gate(hidden // 2)
        self.fc2, self.drop = nn.Linear(hidden // 2, dim), nn.Dropout(0.0)

    def forward(self, x, x_size):
        return self.fc2(self.sg(self.act(self.fc1(x)), x_size))


class WindowAttention(nn.Module):
    def __init__(self, dim, window, heads):
        super().__init__()
        self.window_size, self.num_heads = (window, window), heads
        self.scale = (dim // heads) ** -0.5
        table = torch.zeros((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(table)
        self.proj, self.softmax = nn.Linear(dim, dim), nn.Softmax(-1)

    def forward(self, qkv, rpi, mask=None):
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        scores = torch.einsum("bnhd,bmhd->bhnm", q * self.scale, k)
        scores = scores + self.relative_position_bias_table[rpi].permute(2, 0, 1)
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        return self.proj(torch.einsum("bhnm,bmhd->bnhd", self.softmax(scores), v).flatten(2))


class SelectiveScan(nn.Module):
    """One state after the other."""

    def __init__(self, dim, states):
        super().__init__()
        self.dt_rank, self.d_state = math.ceil(dim / 16), states
        self.x_proj_weight = nn.Parameter(torch.zeros(1, self.dt_rank + 2 * states, dim))
        self.dt_projs_weight = nn.Parameter(torch.zeros(1, dim, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.zeros(1, dim))
        self.A_logs, self.Ds = nn.Parameter(torch.zeros(dim, states)), nn.Parameter(torch.ones(dim))

    def forward(self, x, prompt):
        sizes = [self.dt_rank, self.d_state, self.d_state]
        steps, entry, reading = (x @ self.x_proj_weight[0].T).split(sizes, -1)
        delta = F.softplus(steps @ self.dt_projs_weight[0].T + self.dt_projs_bias[0])
        reading = reading + prompt
        state, out = x.new_zeros(len(x), *self.A_logs.shape), []
        for t in range(x.shape[1]):
            step = delta[:, t, :, None]
            state = state * (-step * self.A_logs.exp()).exp()
            state = state + step * entry[:, t, None] * x[:, t, :, None]
            out.append((state * reading[:, t, None]).sum(-1) + self.Ds * x[:, t])
        return torch.stack(out, 1)


class ASSM(nn.Module):
    """The attentive state space: tokens sorted by their class, scanned with its prompt."""

    stable = False
    """Whether tokens of a class keep their order; the authors leave it to the machine."""

    def __init__(self, dim, states, tokens, rank, ratio):
        super().__init__()
        hidden = int(dim * ratio)
        self.d_state = states
        self.selectiveScan = SelectiveScan(hidden, states)
        self.out_norm, self.act = nn.LayerNorm(hidden), nn.SiLU()
        self.out_proj = nn.Linear(hidden, dim)
        self.in_proj = nn.Sequential(nn.Conv2d(dim, hidden, 1))
        self.CPE = nn.Sequential(nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden))
        self.embeddingB = nn.Embedding(tokens, rank)
        self.route = nn.Sequential(
            nn.Linear(dim, dim // 3), nn.GELU(), nn.Linear(dim // 3, tokens), nn.LogSoftmax(-1)
        )

    def forward(self, x, x_size, token):
        policy = F.gumbel_softmax(self.route(x), hard=True, dim=-1)
        prompt = policy @ (self.embeddingB.weight @ token.weight)
        order = policy.detach().argmax(-1).sort(dim=-1, stable=self.stable).indices
        image = self.in_proj(x.mT.unflatten(2, x_size))
        tokens = (image * self.CPE(image).sigmoid()).flatten(2).mT
        tokens = torch.stack([each[places] for each, places in zip(tokens, order, strict=True)])
        y = self.out_proj(self.out_norm(self.selectiveScan(tokens, prompt)))
        inverse = order.argsort(-1)
        return torch.stack([each[places] for each, places in zip(y, inverse, strict=True)])


class AttentiveLayer(nn.Module):
    def __init__(self, dim=24, window=4, heads=3, shift=0, *, gated=True, ratio=1, hidden=48):
        super().__init__()
        self.window_size, self.shift_size = window, shift
        self.softmax, self.lrelu, self.sigmoid = nn.Softmax(-1), nn.LeakyReLU(), nn.Sigmoid()
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim) for _ in range(4))
        self.scale1, self.scale2 = (nn.Parameter(torch.full((dim,), 1e-4)) for _ in range(2))
        self.wqkv = nn.Linear(dim, 3 * dim)
        self.win_mhsa = WindowAttention(dim, window, heads)
        self.assm = ASSM(dim, 4, 5, 6, ratio)
        mlp = GatedMLP if gated else ConvFFN
        self.convffn1, self.convffn2 = mlp(dim, hidden), mlp(dim, hidden)
        self.embeddingA = nn.Embedding(6, 4)

    def forward(self, x, x_size, params):
        entry, shift = x, self.shift_size
        qkv = self.wqkv(self.norm1(x)).unflatten(1, x_size).roll((-shift, -shift), (1, 2))
        mask = params["attn_mask"] if shift else None
        mixed = self.win_mhsa(windows_of(qkv, self.window_size), params["rpi_sa"], mask)
        mixed = map_of(mixed, *x_size, self.window_size).roll((shift, shift), (1, 2))
        x = x + mixed.flatten(1, 2)
        x = x + self.convffn1(self.norm2(x), x_size) + entry * self.scale1
        entry = x
        x = x + self.assm(self.norm3(x), x_size, self.embeddingA)
        return x + self.convffn2(self.norm4(x), x_size) + entry * self.scale2
