"""Deep Mutual Learning in a loop of your own: two networks teach each other on handwritten digits."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import teacherless as tl

torch.manual_seed(0)
x, y = load_digits(return_X_y=True)
x = torch.tensor(x / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
train_x, test_x, train_y, test_y = train_test_split(x, torch.tensor(y), test_size=0.2, random_state=0)


def net(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * width * 16, 10),
    )  # fmt: skip


method = tl.DML(net(16), net(24))
optimizer = torch.optim.SGD(method.param_groups(), lr=0.05, momentum=0.9, weight_decay=5e-4)
progress = tl.progress(epochs=12)
for epoch in range(12):
    for rows in torch.randperm(len(train_x)).split(64):
        for out in method.steps((train_x[rows], train_y[rows]), progress):  # one step, or one for each student in turn
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
    progress.advance()
    print(epoch, {name: round(term.item(), 3) for name, term in out.terms.items()})

with torch.no_grad():
    for name, student in method.students().items():  # plain networks: ship either
        accuracy = (student.eval()(test_x).argmax(1) == test_y).float().mean()
        print(f"{name}: {100 * accuracy:.1f} % on {len(test_y)} test digits")
