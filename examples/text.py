"""Two small transformers teach each other to tell from a sentence of a docstring whose library it is from."""

import torch
from docstrings import LENGTH, LIBRARIES, load
from torch import Tensor, nn
from torch.utils.data import DataLoader

import teacherless as tl


class Transformer(nn.Module):
    def __init__(self, words: int, width: int, layers: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Parameter(0.02 * torch.randn(LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(LIBRARIES))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.layers(self.words(input_ids) + self.places, src_key_padding_mask=attention_mask == 0)
        seen = attention_mask.unsqueeze(-1)
        return self.head((x * seen).sum(1) / seen.sum(1))


if __name__ == "__main__":
    torch.manual_seed(0)
    train, test, words = load()
    method = tl.DML(Transformer(words, 64, 2), Transformer(words, 48, 3))
    loaders = DataLoader(train, 32, shuffle=True, drop_last=True), DataLoader(test, 128)
    result = tl.train(method, loaders[0], test_data=loaders[1], epochs=4, opt="adamw", lr=1e-3, weight_decay=0.01)
    for name, row in result.summary["students"].items():
        print(f"{name}: {row['test_top1']:.1f} % of {len(test)} test sentences, of {len(LIBRARIES)} libraries")
