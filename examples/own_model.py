"""Your own networks, your own loader, no images: three kinds of network teach each other on the wine data."""

import torch
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import teacherless as tl

torch.manual_seed(0)
x, y = load_wine(return_X_y=True)
x = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)  # [178, 13]
train_x, test_x, train_y, test_y = train_test_split(x, torch.tensor(y), test_size=0.3, random_state=0, stratify=y)
train_loader = DataLoader(TensorDataset(train_x, train_y), batch_size=16, shuffle=True, drop_last=True)
test_loader = DataLoader(TensorDataset(test_x, test_y), batch_size=64)

method = tl.DML(
    nn.Linear(13, 3),
    nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 3)),
    nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3)),
)
result = tl.train(method, train_loader, test_data=test_loader, epochs=30, lr=0.05, per_student={"peer0": {"lr": 0.1}})
for name, row in result.summary["students"].items():
    print(f"{name}: {row['test_top1']:.1f} % of {len(test_y)} test wines")
