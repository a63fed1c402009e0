"""Pointer networks: an LSTM decoder whose attention points at one of the inputs each step.

Vinyals et al., arXiv:1506.03134; the decoding loop of github.com/shirgur/PointerNet, ``PointerNet.py``
(``Decoder.forward`` with its ``recurrence``): inputs already chosen are masked by products.
``Tour`` takes as many steps as there are inputs (the travelling salesman); ``Hull`` stops when it points at
the first input, which closes a convex hull (section 2.3 has an end symbol for that).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.dynamic.record import Decisions, DynamicNetwork, Form, no_decisions, normal

Result = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Weights over the context, and what they select of it."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.input_linear = nn.Linear(hidden, hidden)
        self.context_linear = nn.Conv1d(hidden, hidden, 1)
        self.v = nn.Parameter(torch.empty(hidden).uniform_(-1, 1))

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        inp = self.input_linear(x).unsqueeze(2).expand(-1, -1, context.size(1))
        ctx = self.context_linear(context.permute(0, 2, 1))
        v = self.v.unsqueeze(0).expand(context.size(0), -1).unsqueeze(1)
        alpha = torch.softmax(torch.bmm(v, torch.tanh(inp + ctx)).squeeze(1), dim=1)
        return torch.bmm(ctx, alpha.unsqueeze(2)).squeeze(2), alpha


class PointerNetwork(nn.Module):
    """Encoder, and the decoder's step."""

    def __init__(self, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding_dim = embedding
        self.embedding = nn.Linear(2, embedding)
        self.encoder = nn.LSTM(embedding, hidden, batch_first=True)
        self.input_to_hidden = nn.Linear(embedding, 4 * hidden)
        self.hidden_to_hidden = nn.Linear(hidden, 4 * hidden)
        self.hidden_out = nn.Linear(2 * hidden, hidden)
        self.att = Attention(hidden)
        self.decoder_input0 = nn.Parameter(torch.empty(embedding).uniform_(-1, 1), requires_grad=False)

    def encode(self, points: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        embedded_inputs = self.embedding(points)
        context, (h, c) = self.encoder(embedded_inputs)
        return embedded_inputs, context, (h[-1], c[-1])

    def recurrence(
        self, x: Tensor, hidden: tuple[Tensor, Tensor], context: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        h, c = hidden
        gates = self.input_to_hidden(x) + self.hidden_to_hidden(h)
        input_gate, forget, cell, out = gates.chunk(4, 1)
        c_t = (torch.sigmoid(forget) * c) + (torch.sigmoid(input_gate) * torch.tanh(cell))
        h_t = torch.sigmoid(out) * torch.tanh(c_t)
        hidden_t, output = self.att(h_t, context)
        hidden_t = torch.tanh(self.hidden_out(torch.cat((hidden_t, h_t), 1)))
        return hidden_t, c_t, output


class Tour(PointerNetwork):
    """Returns the weights of each step and the indices, for points [batch, n, 2]."""

    def forward(self, points: Tensor) -> Result:
        batch_size, input_length = points.size(0), points.size(1)
        embedded_inputs, context, hidden = self.encode(points)
        decoder_input = self.decoder_input0.unsqueeze(0).expand(batch_size, -1)
        mask = points.new_ones(1).repeat(input_length).unsqueeze(0).expand(batch_size, -1)
        runner = torch.arange(input_length).unsqueeze(0).expand(batch_size, -1)
        outputs = []
        pointers = []
        for _ in range(input_length):
            h_t, c_t, outs = self.recurrence(decoder_input, hidden, context)
            hidden = (h_t, c_t)
            masked_outs = outs * mask
            _, indices = masked_outs.max(1)
            one_hot_pointers = (runner == indices.unsqueeze(1).expand(-1, outs.size()[1])).to(mask.dtype)
            mask = mask * (1 - one_hot_pointers)
            embedding_mask = one_hot_pointers.unsqueeze(2).expand(-1, -1, self.embedding_dim).bool()
            decoder_input = embedded_inputs[embedding_mask].view(batch_size, self.embedding_dim)
            outputs.append(outs.unsqueeze(0))
            pointers.append(indices.unsqueeze(1))
        return torch.cat(outputs).permute(1, 0, 2), torch.cat(pointers, 1)


class Hull(PointerNetwork):
    """Returns the weights of each step and the indices, for points [1, n, 2]; the first point ends it."""

    def forward(self, points: Tensor) -> Result:
        embedded_inputs, context, hidden = self.encode(points)
        decoder_input = self.decoder_input0.unsqueeze(0)
        mask = torch.ones_like(points[..., 0])
        outputs = []
        pointers = []
        while len(pointers) < points.size(1):
            h_t, c_t, outs = self.recurrence(decoder_input, hidden, context)
            hidden = (h_t, c_t)
            index = (outs * mask).argmax(1)
            outputs.append(outs)
            pointers.append(index)
            if index.item() == 0:
                break
            mask = mask.scatter(1, index.unsqueeze(1), 0.0)
            decoder_input = embedded_inputs[:, index.item()]
        return torch.stack(outputs, dim=1), torch.stack(pointers, dim=1)


def _steps(result: Result) -> Decisions:
    return (result[1].size(1),)


NETWORKS = (
    DynamicNetwork(
        "pointer_tour",
        "pointer network of 256 over 50 points, [1, 50, 2]",
        Form(lambda: Tour(8, 12), normal(2, 6, 2), {(): 1}),
        Form(lambda: Tour(128, 256), normal(1, 50, 2), {(): 1}),
        no_decisions,
    ),
    DynamicNetwork(
        "pointer_hull",
        "pointer network of 256 over 50 points, until it points at the first, [1, 50, 2]",
        Form(
            lambda: Hull(8, 12),
            normal(1, 6, 2),
            {(1,): 141, (2,): 81, (3,): 126, (4,): 51, (5,): 114, (6,): 159},
        ),
        Form(lambda: Hull(128, 256), normal(1, 50, 2), {(3,): 74, (13,): 8, (41,): 62, (49,): 67}),
        _steps,
    ),
)
